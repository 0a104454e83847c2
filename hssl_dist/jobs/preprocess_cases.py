"""What a preprocessing worker does with a few cases, one after the other: survey them, or store them.

Nothing here knows Ray, and nothing imports torch. At most one volume is in memory, and `memory_bytes` says
how much it takes; a few encoded cases are being written meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from hssl_dist.config.preprocess import StorageConfig
from hssl_dist.errors import HsslError, InputError
from hssl_dist.imaging import (
    CaseSurvey,
    Recipe,
    declared_voxels,
    foreground_samples,
    load_case,
    prepare,
    survey_case,
)
from hssl_dist.records import Case, CaseRecord, Intensity, SourceFile, Volume

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hssl_dist.store.writer import EncodedCase

_WRITTEN_AT_ONCE = 4
"""Cases a worker may be writing: a small one takes the storage longer than it takes to prepare the next."""

SURVEY_BYTES_PER_SOURCE_BYTE = 16
"""Where no header says how many voxels there are: up to four of two bytes in a byte of a compressed file, and
each twice in memory while it is turned.
"""

_LOADING_BYTES, _LOADED_BYTES = 12, 5
"""A voxel of float64 and its float32; then image and label. Half of the latter for files of two bytes."""

_STORED_BYTES = 5
"""A stored voxel of image and label, and what it is compressed to."""


def memory_bytes(source_voxels: int, stored_voxels: int) -> int:
    """The most memory that storing a case takes, by its voxels over all channels, as they come and as stored.

    Beside it the process itself has about 200 MB, with its libraries and the slabs it works in.
    """
    return max(_LOADING_BYTES * source_voxels, _LOADED_BYTES * source_voxels + _STORED_BYTES * stored_voxels)


def survey_memory_bytes(case: Case, size_bytes: int) -> int:
    """The most memory that surveying a case takes whose files have so many bytes: by its images' headers.

    A gzip file may hold a thousand times its size. One whose header is refused takes none to speak of.
    """
    try:
        declared = [declared_voxels(url) for url in case.images]
    except InputError:
        return size_bytes
    voxels = [count for count in declared if count is not None]
    if len(voxels) < len(declared):
        return SURVEY_BYTES_PER_SOURCE_BYTE * size_bytes
    return memory_bytes(sum(voxels), 0)


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
    """Load, prepare, write and commit each case; the next is prepared while the last ones are written."""
    results: list[Future[CaseRecord] | Refused] = []
    with ThreadPoolExecutor(_WRITTEN_AT_ONCE) as writers:
        for assignment in assignments:
            try:
                with _named(assignment.case):
                    encoded = _encode(assignment, recipe, storage, max_voxels)
            except InputError as error:
                results.append(Refused(assignment.case.id, str(error)))
            else:
                results.append(writers.submit(_commit, assignment.case, root, encoded))
    return [result.result() if isinstance(result, Future) else result for result in results]


def _encode(assignment: Assignment, recipe: Recipe, storage: StorageConfig, max_voxels: int) -> EncodedCase:
    from hssl_dist.store.quantising import stored_dtype, stored_numbers
    from hssl_dist.store.writer import encode

    rounding = partial(stored_numbers, stored_dtype(storage))
    volume, intensities = prepare(load_case(assignment.case, recipe.classes, max_voxels), recipe, rounding)
    return encode(describe(assignment, volume, intensities), volume, recipe.classes, storage)


def _commit(case: Case, root: str, encoded: EncodedCase) -> CaseRecord:
    from hssl_dist.store.writer import commit

    with _named(case):
        return commit(root, encoded)


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
