"""`hssl predict`: images in, label maps out, each on its source file's own grid.

input -> cases -> hashes of their files -> those not yet predicted so -> prepared as in preprocessing
      -> sliding windows -> back on the source's grid -> <output>/<case>.nii.gz, <output>/records/<case>.json

A case that cannot be predicted is told with its reason and stops no other.
"""

from __future__ import annotations

import posixpath
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hssl_dist import files
from hssl_dist.datasets.inputs import Inputs, find_inputs, known_modality
from hssl_dist.errors import ConfigError, InputError
from hssl_dist.jobs.batches import Workers, batched
from hssl_dist.jobs.hardware import use_hardware
from hssl_dist.jobs.predict_cases import (
    PREDICTION_VERSION,
    Assignment,
    Plan,
    PredictionRecord,
    done_before,
    memory_bytes,
    predict_cases,
    predict_with,
)
from hssl_dist.jobs.preprocess_cases import Refused
from hssl_dist.jobs.segmenter import Segmenter, load_segmenter
from hssl_dist.jobs.sources import HashedCase, hash_cases
from hssl_dist.records import Case, Outcome, content_hash
from hssl_dist.segmentation import Windows

if TYPE_CHECKING:
    from hssl_dist.config.predict import PredictConfig
    from hssl_dist.console import Console

_NAMED = 5


@dataclass(slots=True)
class _Tally:
    """What came of the cases."""

    predicted: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[Refused] = field(default_factory=list)
    doubted: list[tuple[str, str]] = field(default_factory=list)

    def add(self, result: PredictionRecord | Refused) -> None:
        """Count a case that was tried."""
        if isinstance(result, Refused):
            self.failed.append(result)
        else:
            self.predicted.append(result.case)
            self._doubt(result)

    def skip(self, record: PredictionRecord) -> None:
        """Count a case that was done before."""
        self.skipped.append(record.case)
        self._doubt(record)

    def _doubt(self, record: PredictionRecord) -> None:
        self.doubted += [(record.case, warning) for warning in record.warnings]


def run(config: PredictConfig, console: Console) -> Outcome:
    """Predict the cases whose label map, by this model and with these settings, is not there yet.

    Raises MissingError for an input or model that is not there, ConfigError for an input that does not suit
    the model or the output, CheckpointError for a model that cannot segment, TrackingError, StorageError.
    """
    start_s = time.monotonic()
    inputs = find_inputs(config.source, config.layout)
    _check_output(config, inputs)
    # Ray's workers have models of their own: the GPUs are left to them.
    device = torch.device("cpu") if config.runner == "ray" else use_hardware(config.threads)
    segmenter = load_segmenter(config.tracking, config.model, device)
    _check_channels(config, inputs, segmenter.modalities)
    plan = _plan(config, segmenter)
    tally = _Tally()
    todo = _choose(config, inputs, segmenter, plan, tally, console)
    results = (
        _on_ray(config, todo, plan, console)
        if config.runner == "ray"
        else predict_with(segmenter, [assignment for assignment, _ in todo], plan)
    )
    with console.track("predicting", len(todo)) as advance:
        for result in results:
            tally.add(result)
            advance(1)
    return _outcome(config, segmenter, inputs, tally, round(time.monotonic() - start_s, 1))


# --------------------------------------------------------------------------------------------------- checking


def _check_output(config: PredictConfig, inputs: Inputs) -> None:
    folders = {posixpath.dirname(url) for case in inputs.cases for url in case.images}
    if _place(config.output) in {_place(url) for url in (config.input, *folders)}:
        raise ConfigError(
            f"output {files.shown(config.output)} is the input's folder; choose another, so that no image is "
            "replaced"
        )
    if files.exists(config.output) and not files.is_folder(config.output):
        raise ConfigError(f"output {files.shown(config.output)} is a file; choose a folder")
    if files.is_archive(config.output.partition("!/")[0]):
        raise ConfigError(f"output {files.shown(config.output)} is in an archive; choose a folder")


def _place(url: str) -> str:
    """A folder, however it was written."""
    return str(Path(url).resolve()) if files.is_local(url) else files.shown(url).rstrip("/")


def _check_channels(config: PredictConfig, inputs: Inputs, modalities: tuple[str, ...]) -> None:
    """Compare what the input declares of its channels, if it does, with what the model takes."""
    declared, where = inputs.channels, files.shown(config.input)
    if not declared:
        return
    if len(declared) != len(modalities):
        raise ConfigError(
            f"{where} has {len(declared)} channels by its dataset.json ({', '.join(declared)}), the model "
            f"takes {len(modalities)} ({', '.join(modalities)}); choose a model made for such images"
        )
    for index, (name, modality) in enumerate(zip(declared, modalities, strict=True)):
        known = known_modality(name)
        if known is not None and known != modality:
            raise ConfigError(
                f"channel {index} of {where} is {known} by its dataset.json ({name!r}), the model takes "
                f"{modality}; choose a model made for such images"
            )


# --------------------------------------------------------------------------------------------------- choosing


def _plan(config: PredictConfig, segmenter: Segmenter) -> Plan:
    windows = Windows(segmenter.patch_size, config.overlap, config.flipped_axes, config.windows_per_batch)
    return Plan(
        tracking=config.tracking,
        model=segmenter.uri,
        model_key=segmenter.key,
        output=config.output,
        windows=windows,
        max_voxels=config.max_voxels,
        threads=config.threads,
    )


def _choose(
    config: PredictConfig,
    inputs: Inputs,
    segmenter: Segmenter,
    plan: Plan,
    tally: _Tally,
    console: Console,
) -> list[tuple[Assignment, int]]:
    """The cases to predict, with their bytes; those done before and those that cannot be are tallied."""
    todo: list[tuple[Assignment, int]] = []
    cases = _cases(inputs, segmenter.modalities, tally)
    for hashed in hash_cases(cases, inputs.folder, console) if cases else []:
        if hashed.problem is not None:
            tally.failed.append(Refused(hashed.id, hashed.problem))
            continue
        assignment = Assignment(hashed.case, hashed.sources, _key(hashed, segmenter, config))
        try:
            done = done_before(plan.output, assignment)
        except InputError as error:
            tally.failed.append(Refused(hashed.id, str(error)))
            continue
        if done is None:
            todo.append((assignment, hashed.size_bytes))
        else:
            tally.skip(done)
    return todo


def _cases(inputs: Inputs, modalities: tuple[str, ...], tally: _Tally) -> list[Case]:
    """The cases that have as many files as they need: one for each channel, or one for all."""
    dataset = posixpath.basename(inputs.folder)
    cases = []
    for found in inputs.cases:
        if len(found.images) not in (1, len(modalities)):
            last = posixpath.basename(found.images[-1])
            reason = (
                f"{len(found.images)} channels, the last is {last}; the model takes {len(modalities)} "
                f"({', '.join(modalities)}): if these files are cases of their own, set `layout` to folder"
            )
            tally.failed.append(Refused(found.name, reason))
        elif not found.name.isprintable():
            tally.failed.append(Refused(found.name, "its name cannot be printed; rename the file"))
        else:
            cases.append(Case(dataset, found.name, found.name, found.images, None, modalities))
    return cases


def _key(hashed: HashedCase, segmenter: Segmenter, config: PredictConfig) -> str:
    """Identifies all a label map depends on. How many windows are seen at once is no part of it."""
    return content_hash(
        {
            "content": hashed.content,
            "model": segmenter.key,
            "overlap": config.overlap,
            "flips": config.flipped_axes,
            "version": PREDICTION_VERSION,
        }
    )


# ------------------------------------------------------------------------------------------------- predicting


def _on_ray(
    config: PredictConfig,
    todo: Sequence[tuple[Assignment, int]],
    plan: Plan,
    console: Console,
) -> Iterator[PredictionRecord | Refused]:
    """As Ray tasks, each with a GPU where there are any; workers load the model by its exact URI."""
    sized = [(assignment, memory_bytes(size_bytes)) for assignment, size_bytes in todo]
    with ExitStack() as stack:
        workers = Workers(config.ray, console, stack, cpus=config.threads or 1, gpu=True)
        yield from workers.run(predict_cases, batched(sized), plan)


# ----------------------------------------------------------------------------------------------- what is told


def _outcome(
    config: PredictConfig, segmenter: Segmenter, inputs: Inputs, tally: _Tally, seconds: float
) -> Outcome:
    failed = [
        {"case": _printable(item.case_id), "reason": _printable(item.reason)}
        for item in sorted(tally.failed, key=lambda item: item.case_id)
    ]
    summary: dict[str, Any] = {
        "model": segmenter.uri,
        "input": files.shown(config.input),
        "output": files.shown(config.output),
        "cases": len(inputs.cases),
        "predicted": len(tally.predicted),
        "skipped": len(tally.skipped),
        "failed": failed,
        "doubted": sorted({_printable(case) for case, _ in tally.doubted}),
        "seconds": seconds,
    }
    line = (
        f"{segmenter.uri}: {len(tally.predicted)} predicted, {len(tally.skipped)} done before, "
        f"{len(failed)} failed, {seconds:.0f} s; label maps in {files.shown(config.output)}"
    )
    warnings = [f"{item['case']}: {item['reason']}" for item in failed]
    warnings += [f"{_printable(case)}: {doubt}" for case, doubt in sorted(tally.doubted)]
    output = posixpath.basename(config.output)
    if unused := [name for name in inputs.unused if name != output]:
        rest = f" and {len(unused) - _NAMED} more" if len(unused) > _NAMED else ""
        names = ", ".join(map(_printable, unused[:_NAMED]))
        warnings.append(f"{files.shown(inputs.folder)} holds what belongs to no case: {names}{rest}")
    return Outcome(summary, (line,), "failed" if failed else "done", tuple(warnings))


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
