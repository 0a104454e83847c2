"""What a preprocessing worker does with a few cases, one after the other: survey them, or store them.

Nothing here knows Ray, and nothing imports torch. At most one case is in memory; `memory_bytes` says how much
it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from hssl_dist.config.preprocess import StorageConfig
from hssl_dist.errors import HsslError, InputError
from hssl_dist.imaging import CaseSurvey, Recipe, foreground_samples, load_case, prepare, survey_case
from hssl_dist.records import Case, CaseRecord, Intensity, SourceFile, Volume

if TYPE_CHECKING:
    from collections.abc import Iterator

SURVEY_BYTES_PER_SOURCE_BYTE = 16
"""Up to four voxels of two bytes in a byte of gzip, and each twice in memory while it is turned."""

_LOADING_BYTES, _LOADED_BYTES = 12, 5
"""A voxel of float64 and its float32; then image and label. Half of the latter for files of two bytes."""

_STORED_BYTES = 5
"""A stored voxel of image and label, and what it is compressed to."""


def memory_bytes(source_voxels: int, stored_voxels: int) -> int:
    """The most memory that storing a case takes, by its voxels over all channels, as they come and as stored.

    Beside it the process itself has about 200 MB, with its libraries and the slabs it works in.
    """
    return max(_LOADING_BYTES * source_voxels, _LOADED_BYTES * source_voxels + _STORED_BYTES * stored_voxels)


@dataclass(frozen=True, slots=True)
class Refused:
    """A case whose files cannot become a volume, and why."""

    case_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Assignment:
    """A case to store and what its record says of it besides its content."""

    case: Case
    task: str
    group: str
    sources: tuple[SourceFile, ...]
    fingerprints: tuple[str, ...]
    key: str


def survey_cases(
    cases: Sequence[Case], classes: dict[int, str], max_voxels: int
) -> list[CaseSurvey | Refused]:
    """Load and survey each case."""
    results: list[CaseSurvey | Refused] = []
    for case in cases:
        try:
            with _named(case):
                results.append(survey_case(case.id, load_case(case, classes, max_voxels)))
        except InputError as error:
            results.append(Refused(case.id, str(error)))
    return results


def store_cases(
    assignments: Sequence[Assignment], root: str, recipe: Recipe, storage: StorageConfig, max_voxels: int
) -> list[CaseRecord | Refused]:
    """Load, prepare, write and commit each case."""
    results: list[CaseRecord | Refused] = []
    for assignment in assignments:
        try:
            with _named(assignment.case):
                results.append(_store(assignment, root, recipe, storage, max_voxels))
        except InputError as error:
            results.append(Refused(assignment.case.id, str(error)))
    return results


def _store(
    assignment: Assignment, root: str, recipe: Recipe, storage: StorageConfig, max_voxels: int
) -> CaseRecord:
    from hssl_dist.store.quantising import stored_dtype, stored_numbers
    from hssl_dist.store.writer import write_case

    rounding = partial(stored_numbers, stored_dtype(storage))
    volume, intensities = prepare(load_case(assignment.case, recipe.classes, max_voxels), recipe, rounding)
    return write_case(root, describe(assignment, volume, intensities), volume, recipe.classes, storage)


def describe(assignment: Assignment, volume: Volume, intensities: tuple[Intensity, ...]) -> CaseRecord:
    """The record of a prepared case, without its objects."""
    case = assignment.case
    foreground, voxels = foreground_samples(volume, seed=int(assignment.key[:8], 16))
    return CaseRecord(
        id=case.id,
        dataset=case.dataset,
        patient=case.patient,
        task=assignment.task,
        group=assignment.group,
        split=case.split,
        labelled=volume.label is not None,
        modalities=volume.modalities,
        geometry=volume.geometry,
        intensities=intensities,
        foreground=foreground,
        voxels=voxels,
        sources=assignment.sources,
        fingerprints=assignment.fingerprints,
        key=assignment.key,
        objects=(),
    )


@contextmanager
def _named(case: Case) -> Iterator[None]:
    """Name the case in errors nobody foresaw; the package's own say what they are about."""
    try:
        yield
    except HsslError:
        raise
    except Exception as error:
        raise RuntimeError(
            f"case {case.id!r} of {case.dataset!r}: {type(error).__name__}: {error}"
        ) from error
