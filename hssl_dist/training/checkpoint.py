"""Checkpoints: the whole state of a run at one step, on local disk or any fsspec URL.

    <url>/
      step-00000100/
        model.safetensors       parameters by name
        optimizer.safetensors   moments and step counts of the optimiser, by parameter name
        state.json              everything else: step, config, history
        commit.json             sizes and hashes of the files above, written last
      step-00000200/
        ...

A checkpoint exists when its commit record does, so a killed or failed save leaves nothing to resume from by
mistake; the older ones stay. Nothing is pickled. No random state is saved: every draw depends on the seed and
the step alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch

from hssl_dist import files
from hssl_dist.errors import CheckpointError
from hssl_dist.records import Record, canonical_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

_MODEL = "model.safetensors"
_OPTIMIZER = "optimizer.safetensors"
_STATE = "state.json"
_COMMIT = "commit.json"
_FOLDER = re.compile(r"step-(\d{8,})")


class SavedFile(Record):
    """A file of a checkpoint."""

    size_bytes: int
    sha256: str


class CommitRecord(Record):
    """What makes a checkpoint complete.

    `score` (lower is better) is compared among the checkpoints of one `series`: the losses of two stages have
    nothing to do with each other.
    """

    step: int
    series: str
    score: float | None
    files: dict[str, SavedFile]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """State after `step` optimiser steps; `state` is plain JSON."""

    step: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: Mapping[str, Any]


class CheckpointStore:
    """The checkpoints of one run; one process writes, any may read."""

    def __init__(self, url: str) -> None:
        self.url = url

    def save(
        self, checkpoint: Checkpoint, *, series: str = "", score: float | None = None, keep_last: int = 2
    ) -> str:
        """Write a checkpoint, then drop all but the newest `keep_last` and the best of each series.

        Returns the checkpoint's URL. Raises CheckpointError if the storage refuses; older ones are intact.
        """
        folder = self._folder(checkpoint.step)
        contents = {
            _MODEL: _to_bytes(checkpoint.model),
            _OPTIMIZER: _to_bytes(checkpoint.optimizer),
            _STATE: canonical_json(dict(checkpoint.state)).encode(),
        }
        saved = {name: _describe(data) for name, data in contents.items()}
        commit = CommitRecord(step=checkpoint.step, series=series, score=score, files=saved)
        try:
            files.remove(files.join(folder, _COMMIT))
            for name, data in contents.items():
                files.write(files.join(folder, name), data)
            files.write(files.join(folder, _COMMIT), commit.to_json().encode())
            self._drop_all_but(keep_last)
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint of step {checkpoint.step} cannot be saved at {self.url}: {error}; make room "
                "or mend the storage, and run it again: older checkpoints are intact"
            ) from error
        return folder

    def steps(self) -> list[int]:
        """Steps with a committed checkpoint, ascending."""
        found = (_FOLDER.fullmatch(name) for name in files.listing(self.url))
        steps = sorted(int(match[1]) for match in found if match)
        return [step for step in steps if files.exists(files.join(self._folder(step), _COMMIT))]

    def latest(self) -> int | None:
        """Step of the newest committed checkpoint."""
        steps = self.steps()
        return steps[-1] if steps else None

    def load(self, step: int) -> Checkpoint:
        """Read a checkpoint, every file checked against the hash in its commit record.

        Raises CheckpointError, naming the file, if one is missing, cut short or has other bytes.
        """
        commit = self._commit(step)
        if commit.step != step:
            raise CheckpointError(
                f"{self._folder(step)}/{_COMMIT} is of step {commit.step}, not {step}; {self._remedy(step)}"
            )
        state = json.loads(self._checked(step, commit, _STATE))
        return Checkpoint(
            step=step,
            model=self._tensors(step, commit, _MODEL),
            optimizer=self._tensors(step, commit, _OPTIMIZER),
            state=state,
        )

    def load_state(self, step: int) -> dict[str, Any]:
        """Only the JSON part of a checkpoint, checked."""
        state: dict[str, Any] = json.loads(self._checked(step, self._commit(step), _STATE))
        return state

    # ------------------------------------------------------------------------------------------------ details

    def _folder(self, step: int) -> str:
        return files.join(self.url, f"step-{step:08d}")

    def _remedy(self, step: int) -> str:
        return f"remove {self._folder(step)} to resume from an older checkpoint"

    def _commit(self, step: int) -> CommitRecord:
        url = files.join(self._folder(step), _COMMIT)
        try:
            return CommitRecord.model_validate_json(files.read(url))
        except FileNotFoundError:
            raise CheckpointError(f"no checkpoint of step {step} at {self.url}") from None
        except ValidationError:
            raise CheckpointError(f"{url} is not a commit record; {self._remedy(step)}") from None

    def _checked(self, step: int, commit: CommitRecord, name: str) -> bytes:
        url = files.join(self._folder(step), name)
        remedy = self._remedy(step)
        expected = commit.files.get(name)
        if expected is None:
            raise CheckpointError(f"{self._folder(step)}/{_COMMIT} does not list {name}; {remedy}")
        try:
            data = files.read(url)
        except FileNotFoundError:
            raise CheckpointError(f"{url} is missing; {remedy}") from None
        found = _describe(data)
        if found.size_bytes != expected.size_bytes:
            raise CheckpointError(
                f"{url} has {found.size_bytes} bytes, its commit record says {expected.size_bytes}; {remedy}"
            )
        if found.sha256 != expected.sha256:
            raise CheckpointError(f"{url} has other bytes than were saved (SHA-256 differs); {remedy}")
        return data

    def _tensors(self, step: int, commit: CommitRecord, name: str) -> dict[str, Tensor]:
        data = self._checked(step, commit, name)
        try:
            tensors: dict[str, Tensor] = safetensors_torch.load(data)
        except SafetensorError as error:
            raise CheckpointError(
                f"{self._folder(step)}/{name} is not in safetensors format: {error}"
            ) from None
        return tensors

    def _drop_all_but(self, keep_last: int) -> None:
        """Remove older checkpoints and leftovers of saves that never got their commit record."""
        steps = self.steps()
        commits = [self._commit(step) for step in steps]
        best: dict[str, CommitRecord] = {}
        for commit in commits:
            if commit.score is not None:
                held = best.get(commit.series)
                if held is None or held.score is None or commit.score < held.score:
                    best[commit.series] = commit
        keep = {*steps[-keep_last:], *(commit.step for commit in best.values())}
        for name in files.listing(self.url):
            match = _FOLDER.fullmatch(name)
            if match and int(match[1]) not in keep and int(match[1]) <= steps[-1]:
                files.remove(files.join(self.url, name, _COMMIT))
                files.remove(files.join(self.url, name))


def _describe(data: bytes) -> SavedFile:
    return SavedFile(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    data: bytes = safetensors_torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    )
    return data
