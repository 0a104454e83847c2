"""Checkpoints written beside training: the training thread copies the state, another thread does the rest.

One write is under way at a time. A save that comes while the one before is still being written waits for it,
no longer than `checkpoint.timeout_s`, and then counts as failed. So a run holds one copy of its state at
most, and has the same checkpoints whatever the storage's speed. A failed save is a warning, and the next
interval tries again; `checkpoint.max_failures` in a row end the run. A save with `wait`, as at a stop and at
the end of a stage, returns once the checkpoint is committed, or raises.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Self

from hssl_dist.errors import CheckpointError
from hssl_dist.training.checkpoint import Checkpoint, CheckpointStore, Snapshot
from hssl_dist.training.state_json import StateJson

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from hssl_dist.config.pretrain import CheckpointConfig


class _Write:
    """A checkpoint on its way to storage, by a thread of its own."""

    def __init__(self, step: int, write: Callable[[], str], drop: Callable[[], None]) -> None:
        self.step = step
        self.url, self.seconds = "", 0.0
        self.failure: BaseException | None = None
        self.complaint: CheckpointError | None = None
        self._write, self._drop = write, drop
        # A daemon: storage that hangs must not keep a process whose run has ended by an error.
        self._thread = threading.Thread(target=self._run, name=f"checkpoint-{step}", daemon=True)
        self._thread.start()

    def ended(self, deadline_s: float) -> bool:
        """Whether it ends until then, by the monotonic clock."""
        self._thread.join(max(0.0, deadline_s - time.monotonic()))
        return not self._thread.is_alive()

    def _run(self) -> None:
        start_s = time.monotonic()
        try:
            self.url = self._write()
            self.seconds = time.monotonic() - start_s
            try:
                self._drop()
            except CheckpointError as error:  # the new checkpoint is there all the same
                self.complaint = error
        except BaseException as error:  # noqa: BLE001  (the training thread raises it)
            self.failure = error


class CheckpointWriter:
    """Writes the checkpoints of a run; at the end of its context none is pending.

    A write that is late at a stop, or once too often, is given up: nothing waits for it any more.

    All methods are for the training thread, which is also where `on_checkpoint(step, url, seconds)` is told
    of each commit and how long it took to write, and `on_warning(step, text)` of what went wrong.
    `longest_wait_s` bounds `settings.timeout_s`.
    """

    def __init__(
        self,
        store: CheckpointStore,
        settings: CheckpointConfig,
        on_checkpoint: Callable[[int, str, float], None],
        on_warning: Callable[[int, str], None],
        longest_wait_s: float = float("inf"),
    ) -> None:
        self._store, self._settings = store, settings
        self._on_checkpoint, self._on_warning = on_checkpoint, on_warning
        self._timeout_s = min(settings.timeout_s, longest_wait_s)
        self._state_json = StateJson()
        self._pending: _Write | None = None
        self._failures = 0
        self._given_up: CheckpointError | None = None
        self._complaints: set[str] = set()

    def save(
        self, checkpoint: Checkpoint, *, series: str = "", score: float | None = None, wait: bool = False
    ) -> None:
        """Copy the state and start to write it; with `wait`, return once it is committed.

        Raises CheckpointError if the config's number of saves in a row have failed, or with `wait` if this
        one has; and whatever else the writing thread raised.
        """
        step, deadline_s = checkpoint.step, time.monotonic() + self._timeout_s
        self._settle(deadline_s)
        if self._pending is not None:
            late = self._late(self._pending.step, f"that of step {step} is not saved")
            if wait:
                self._pending = None
                raise late
            self._failed(step, late)
        if self._given_up is not None and not wait:
            self._pending = None
            raise self._given_up
        if self._pending is None:
            self._pending = self._start(Snapshot.of(checkpoint, self._state_json), series, score)
            if wait:
                self._finish(deadline_s)

    def poll(self) -> None:
        """Tell of a write that has ended meanwhile, without waiting; `save` raises if it was one too many."""
        self._settle(time.monotonic())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for a pending write. Raises what went wrong with it; beside another error that is a warning.

        A KeyboardInterrupt does not wait.
        """
        write, self._pending = self._pending, None
        if write is None:
            return
        patient = kind is None or issubclass(kind, Exception)
        if write.ended(time.monotonic() + (self._timeout_s if patient else 0.0)):
            failure = write.failure
        else:
            failure = self._late(write.step, "the run ends without it")
        if failure is None:
            self._succeeded(write)
        elif kind is None:
            raise failure
        else:
            self._on_warning(write.step, str(failure))

    # ------------------------------------------------------------------------------------------------ details

    def _start(self, snapshot: Snapshot, series: str, score: float | None) -> _Write:
        store, keep_last = self._store, self._settings.keep_last
        return _Write(
            snapshot.step,
            lambda: store.write(snapshot, series=series, score=score),
            lambda: store.drop_all_but(keep_last),
        )

    def _settle(self, deadline_s: float) -> None:
        """Tell what came of the pending write, if it ends until then; it is pending no more."""
        write = self._pending
        if write is None or not write.ended(deadline_s):
            return
        self._pending = None
        if isinstance(write.failure, CheckpointError):
            self._failed(write.step, write.failure)
        else:
            self._succeeded(write)

    def _finish(self, deadline_s: float) -> None:
        """Wait for the pending write. Raises what went wrong with it."""
        write = self._pending
        if write is None:
            return
        ended = write.ended(deadline_s)
        self._pending = None
        if not ended:
            raise self._late(write.step, "the run ends without it")
        self._succeeded(write)

    def _succeeded(self, write: _Write) -> None:
        if write.failure is not None:
            raise write.failure
        self._failures, self._given_up = 0, None
        self._on_checkpoint(write.step, write.url, write.seconds)
        if write.complaint is not None and str(write.complaint) not in self._complaints:
            self._complaints.add(str(write.complaint))
            self._on_warning(write.step, str(write.complaint))

    def _failed(self, step: int, error: CheckpointError) -> None:
        """Count a failed save: a warning, or one too many."""
        self._failures += 1
        most = self._settings.max_failures
        if self._failures < most:
            self._on_warning(
                step, f"{error}; training goes on (failure {self._failures}, {most} in a row end the run)"
            )
            return
        count = "the checkpoint" if most == 1 else f"{most} checkpoints in a row"
        self._given_up = CheckpointError(f"{count} could not be saved, the last because {error}")
        self._given_up.__cause__ = error

    def _late(self, step: int, consequence: str) -> CheckpointError:
        return CheckpointError(
            f"the checkpoint of step {step} is still being written to {self._store.url} after "
            f"{self._timeout_s:g} s, {consequence}; look at the storage, or raise checkpoint.timeout_s: "
            "older checkpoints are intact"
        )
