"""Checkpoints: the whole state of a run at one step, on local disk or any fsspec URL.

    <url>/
      step-00000100/
        model.safetensors       parameters by name
        optimizer.safetensors   moments and step counts of the optimiser, by parameter name
        state.json              everything else: step, config, history
        commit.json             sizes and hashes of the files above, and a seal of its own; written last
      step-00000200/
        ...

A checkpoint exists when its commit record does, and the record is written only once the files are durable, so
a killed or failed save leaves nothing to resume from by mistake; the older ones stay until then. Every bit of
the four files is under a hash. Nothing is pickled. No random state is saved: every draw depends on the seed
and the step alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor

from hssl_dist import files
from hssl_dist.errors import CheckpointError, CorruptError, HsslError
from hssl_dist.records import Record
from hssl_dist.store.sealed import seal, unseal
from hssl_dist.training.state_json import StateJson

T = TypeVar("T")
Put = Callable[[str, bytes], None]

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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A checkpoint that nothing can change: tensors in memory of their own, on the CPU; `state` as bytes."""

    step: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: bytes

    @classmethod
    def of(cls, checkpoint: Checkpoint, state_json: StateJson | None = None) -> Snapshot:
        """What the checkpoint holds now; later optimiser steps do not change it.

        `state_json` has encoded the run's states so far.
        """
        return cls(
            checkpoint.step,
            _copies(checkpoint.model),
            _copies(checkpoint.optimizer),
            (state_json or StateJson()).encode(checkpoint.state),
        )

    def contents(self) -> Iterator[tuple[str, bytes]]:
        """Names and bytes of the files, one at a time: large ones are not held together."""
        yield _MODEL, safetensors_torch.save(dict(self.model))
        yield _OPTIMIZER, safetensors_torch.save(dict(self.optimizer))
        yield _STATE, self.state


def _put(url: str, data: bytes) -> None:
    files.write(url, data, durable=True)


class CheckpointStore:
    """The checkpoints of one run; one process writes, any may read.

    Storage that fails in a way that may pass is tried again by `backoff`. `put` writes one file, durably.
    """

    def __init__(self, url: str, backoff: files.Backoff | None = None, put: Put = _put) -> None:
        self.url = url
        self._backoff = backoff or files.Backoff()
        self._put = put

    def save(
        self, checkpoint: Checkpoint, *, series: str = "", score: float | None = None, keep_last: int = 2
    ) -> str:
        """Write a checkpoint, then drop all but the newest `keep_last` and the best of each series.

        Returns the checkpoint's URL. Raises CheckpointError if the storage refuses; older ones are intact.
        """
        url = self.write(Snapshot.of(checkpoint), series=series, score=score)
        self.drop_all_but(keep_last)
        return url

    def write(self, snapshot: Snapshot, *, series: str = "", score: float | None = None) -> str:
        """Write a checkpoint, its commit record last. Returns its URL.

        Raises CheckpointError if the storage refuses; older ones are intact.
        """
        folder = self._folder(snapshot.step)
        try:
            for name in self._retried(lambda: files.listing(folder)):
                # Of a save of this step that was killed; or of the one that this replaces.
                self._remove(files.join(folder, name))
            saved = {}
            for name, data in snapshot.contents():
                saved[name] = _describe(data)
                self._put_retried(files.join(folder, name), data)
            commit = CommitRecord(step=snapshot.step, series=series, score=score, files=saved)
            self._put_retried(files.join(folder, _COMMIT), seal([commit]))
        except (OSError, HsslError) as error:
            raise CheckpointError(self._refusal(snapshot.step, error)) from error
        return folder

    def drop_all_but(self, keep_last: int) -> None:
        """Remove all but the newest `keep_last` and the best of each series, and leftovers of killed saves.

        Raises CheckpointError, after all else is done, if one of them cannot be read or removed; it stays.
        """
        try:
            steps = self.steps()
            commits, unreadable = self._commits(steps)
            best: dict[str, CommitRecord] = {}
            for commit in commits:
                held = best.get(commit.series)
                if commit.score is not None and (
                    held is None or held.score is None or commit.score < held.score
                ):
                    best[commit.series] = commit
            keep = {*steps[-keep_last:], *(commit.step for commit in best.values()), *unreadable}
            for step in self._folders():
                if step not in keep and step < max(steps, default=0):
                    self._remove(files.join(self._folder(step), _COMMIT))
                    self._remove(self._folder(step))
        except (OSError, HsslError) as error:
            raise CheckpointError(f"older checkpoints at {self.url} cannot be removed: {error}") from error
        if unreadable:
            raise CheckpointError(f"an older checkpoint is kept: {next(iter(unreadable.values()))}")

    def steps(self) -> list[int]:
        """Steps with a committed checkpoint, ascending."""
        return [step for step in self._folders() if self._is_committed(step)]

    def latest(self) -> int | None:
        """Step of the newest committed checkpoint."""
        return next((step for step in reversed(self._folders()) if self._is_committed(step)), None)

    def load(self, step: int) -> Checkpoint:
        """Read a checkpoint, every file checked against the hash in its commit record.

        Raises CheckpointError, naming the file, if one is missing, cut short or has other bytes.
        """
        commit = self._commit(step)
        return Checkpoint(
            step=step,
            model=self._tensors(step, commit, _MODEL),
            optimizer=self._tensors(step, commit, _OPTIMIZER),
            state=json.loads(self._checked(step, commit, _STATE)),
        )

    def load_state(self, step: int) -> dict[str, Any]:
        """Only the JSON part of a checkpoint, checked."""
        state: dict[str, Any] = json.loads(self._checked(step, self._commit(step), _STATE))
        return state

    # ------------------------------------------------------------------------------------------------ details

    def _folder(self, step: int) -> str:
        return files.join(self.url, f"step-{step:08d}")

    def _folders(self) -> list[int]:
        """Steps with a folder, ascending."""
        found = (_FOLDER.fullmatch(name) for name in self._retried(lambda: files.listing(self.url)))
        return sorted(int(match[1]) for match in found if match)

    def _is_committed(self, step: int) -> bool:
        return self._retried(lambda: files.exists(files.join(self._folder(step), _COMMIT)))

    def _retried(self, work: Callable[[], T]) -> T:
        return files.retried(work, self._backoff)

    def _put_retried(self, url: str, data: bytes) -> None:
        self._retried(lambda: self._put(url, data))

    def _remove(self, url: str) -> None:
        self._retried(lambda: files.remove(url))

    def _refusal(self, step: int, error: Exception) -> str:
        if files.lacks_space(error):
            return (
                f"no space for the checkpoint of step {step} in {self._folder(step)}: {error}; make room "
                "there, or raise the quota or the limit on file sizes: older checkpoints are intact"
            )
        return (
            f"the checkpoint of step {step} cannot be saved at {self.url}: {error}; make room "
            "or mend the storage, and run it again: older checkpoints are intact"
        )

    def _remedy(self, step: int) -> str:
        return f"remove {self._folder(step)} to resume from an older checkpoint"

    def _commits(self, steps: list[int]) -> tuple[list[CommitRecord], dict[int, str]]:
        """The commit records that can be read, and what is wrong with the others."""
        commits, unreadable = [], {}
        for step in steps:
            try:
                commits.append(self._commit(step))
            except CheckpointError as error:
                unreadable[step] = str(error)
        return commits, unreadable

    def _commit(self, step: int) -> CommitRecord:
        url = files.join(self._folder(step), _COMMIT)
        try:
            (line,) = unseal(url, self._retried(lambda: files.read(url)))
            commit = CommitRecord.model_validate_json(line)
        except FileNotFoundError:
            raise CheckpointError(f"no checkpoint of step {step} at {self.url}") from None
        except (CorruptError, ValueError):
            raise CheckpointError(
                f"{url} is damaged, or of an older version of this package; {self._remedy(step)}"
            ) from None
        if commit.step != step:
            raise CheckpointError(f"{url} is of step {commit.step}, not {step}; {self._remedy(step)}")
        return commit

    def _checked(self, step: int, commit: CommitRecord, name: str) -> bytes:
        url = files.join(self._folder(step), name)
        remedy = self._remedy(step)
        expected = commit.files.get(name)
        if expected is None:
            raise CheckpointError(f"{self._folder(step)}/{_COMMIT} does not list {name}; {remedy}")
        try:
            data = self._retried(lambda: files.read(url))
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


def _describe(data: bytes) -> SavedFile:
    return SavedFile(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
