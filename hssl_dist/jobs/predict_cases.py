"""What predicting does with a few cases, one after the other: prepare, predict, restore, write, record.

Nothing here knows Ray. A case's record, `records/<case>.json` in the output, says what its label map was made
from and by. It is written twice: without the label map's hash before anything is written, which claims the
file, and with it once the label map is durably there, which makes the case done. So a killed run leaves no
case that looks done, and a file that others wrote, or changed, is never replaced.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from hssl_dist import dicom, files
from hssl_dist.config.parts import TrackingConfig
from hssl_dist.errors import HsslError, InputError, MissingError, NonFiniteError
from hssl_dist.imaging import label_map, load_case, prepare, restore_scores, unit_doubts
from hssl_dist.jobs.hardware import use_hardware
from hssl_dist.jobs.preprocess_cases import Refused
from hssl_dist.jobs.segmenter import Segmenter, load_segmenter
from hssl_dist.memory import is_out_of_memory
from hssl_dist.records import Case, Record, SourceFile, StoredObject
from hssl_dist.segmentation import Windows, keep_largest, logit_slabs

PREDICTION_VERSION = 1
"""Raised whenever the same model, settings and files would give another label map; part of every key."""

_PROCESS_BYTES, _BYTES_PER_SOURCE_BYTE = 1_500_000_000, 16
"""Libraries, network and activations; up to four voxels of two bytes in a byte of gzip, each held twice."""

_REMEDY = "what is done is kept: make room or choose another output, and run it again"

_SCANNERS = {"CT": "ct", "MR": "mr"}
"""Modalities that DICOM states."""


def memory_bytes(source_bytes: int) -> int:
    """About what predicting a case takes, by the bytes of its files: what a Ray task asks for."""
    return _PROCESS_BYTES + _BYTES_PER_SOURCE_BYTE * source_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """How all cases are predicted, and where to; it travels to workers, which load the model themselves."""

    tracking: TrackingConfig
    model: str
    model_key: str
    output: str
    windows: Windows
    max_voxels: int
    threads: int | None


@dataclass(frozen=True, slots=True)
class Assignment:
    """A case to predict, its source files, and the key of all its label map depends on."""

    case: Case
    sources: tuple[SourceFile, ...]
    key: str


class PredictionRecord(Record):
    """What a label map was made from and by; it exists if `label_map` does (path relative to the output).

    `warnings` say why the images may be none that the model takes.
    """

    format: Literal[1] = 1
    case: str
    key: str
    model: str
    classes: dict[int, str]
    overlap: float
    flips: tuple[int, ...]
    sources: tuple[SourceFile, ...]
    warnings: tuple[str, ...] = ()
    label_map: StoredObject | None = None


def predict_cases(assignments: Sequence[Assignment], plan: Plan) -> list[PredictionRecord | Refused]:
    """Predict each case, with a model that this process loads once. What a Ray task does."""
    return list(predict_with(_segmenter(plan), assignments, plan))


@functools.lru_cache(maxsize=1)
def _segmenter(plan: Plan) -> Segmenter:
    segmenter = load_segmenter(plan.tracking, plan.model, use_hardware(plan.threads))
    if segmenter.key != plan.model_key:
        raise MissingError(f"the model at {plan.model} was replaced during the job; run it again")
    return segmenter


def predict_with(
    segmenter: Segmenter, assignments: Sequence[Assignment], plan: Plan
) -> Iterator[PredictionRecord | Refused]:
    """Predict one case after the other; one that cannot be is refused with its reason, the others go on.

    Whatever goes wrong with a case, foreseen or not, is its own. Raises StorageError and AccessError for what
    concerns all: storage that fails or refuses, an output that cannot be written.
    """
    for assignment in assignments:
        try:
            data, doubts = _predict(segmenter, assignment.case, plan)
        except (InputError, NonFiniteError) as error:
            yield Refused(assignment.case.id, str(error))
        except HsslError:
            raise
        except Exception as error:  # noqa: BLE001  (hours of others' cases may follow, and all of it is told)
            reason = f"{type(error).__name__}: {error}"
            if is_out_of_memory(error):
                reason = "not enough memory for the volume; lower windows_per_batch, or use a larger machine"
            yield Refused(assignment.case.id, reason)
        else:
            yield _commit(segmenter, assignment, plan, data, doubts)


def _predict(segmenter: Segmenter, case: Case, plan: Plan) -> tuple[bytes, tuple[str, ...]]:
    """The label map's file, and why the images may be of another modality than the model's."""
    if dicom.is_series(case.images[0]):
        _check_modality(case, segmenter.modalities)
    loaded = load_case(case, {}, plan.max_voxels)
    doubts = unit_doubts(loaded)
    volume, intensities = prepare(loaded, segmenter.recipe, segmenter.rounding)
    del loaded
    background = [intensity.background for intensity in intensities]
    slabs = logit_slabs(
        segmenter.network, volume.image, plan.windows, segmenter.device, background, volume.scaling
    )
    label = keep_largest(restore_scores(slabs, volume.geometry), segmenter.keep_largest)
    return label_map(label, volume.geometry, case.images[0]), doubts


def _check_modality(case: Case, modalities: tuple[str, ...]) -> None:
    """Raise InputError for a DICOM series that says it is another modality than the model's."""
    (_, header), *_ = dicom.series_files(case.images[0])
    stated = header.values.get("modality", "")
    if stated in _SCANNERS and _SCANNERS[stated] != modalities[0]:
        raise InputError(
            f"{dicom.series_name(case.images[0])}: the series is {stated}, the model takes {modalities[0]}"
        )


# ---------------------------------------------------------------------------------------------------- records


def label_url(output: str, case_id: str) -> str:
    """Where a case's label map goes."""
    return files.join(output, f"{case_id}.nii.gz")


def done_before(output: str, assignment: Assignment) -> PredictionRecord | None:
    """The record of the case if its label map is there and was made by the same model and settings from the
    same files.

    Raises InputError if a file of its name is there that was not written by this job, or changed since.
    """
    case_id = assignment.case.id
    url, name = label_url(output, case_id), f"{case_id}.nii.gz"
    record = _read_record(output, case_id)
    try:
        found = files.sha256(url)
    except FileNotFoundError:
        return None
    if record is None:
        raise InputError(f"{name} in the output is not from hssl predict; move it, or choose another output")
    if record.label_map is None:  # claimed, and perhaps written, by a run that was killed
        return None
    if found != (record.label_map.sha256, record.label_map.size_bytes):
        raise InputError(
            f"{name} in the output was changed since it was predicted; move it, or choose another output"
        )
    return record if record.key == assignment.key else None


def _commit(
    segmenter: Segmenter, assignment: Assignment, plan: Plan, data: bytes, warnings: tuple[str, ...]
) -> PredictionRecord:
    """Claim the label map's file, write it, record it."""
    case_id = assignment.case.id
    claim = PredictionRecord(
        case=case_id,
        key=assignment.key,
        model=segmenter.uri,
        classes=segmenter.classes,
        overlap=plan.windows.overlap,
        flips=plan.windows.flips,
        sources=assignment.sources,
        warnings=warnings,
    )
    stored = StoredObject(
        path=f"{case_id}.nii.gz", size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
    )
    record = claim.model_copy(update={"label_map": stored})
    with files.writing(plan.output, _REMEDY):
        files.write(_record_url(plan.output, case_id), claim.to_json().encode())
        files.write(label_url(plan.output, case_id), data)
        files.write(_record_url(plan.output, case_id), record.to_json().encode())
    return record


def _record_url(output: str, case_id: str) -> str:
    return files.join(output, "records", f"{case_id}.json")


def _read_record(output: str, case_id: str) -> PredictionRecord | None:
    """The case's record; a damaged one counts as none."""
    try:
        return PredictionRecord.model_validate_json(files.read(_record_url(output, case_id)))
    except (FileNotFoundError, ValidationError):
        return None
