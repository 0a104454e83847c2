"""The thread that watches one rank."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol, Self, runtime_checkable

from hssl_dist import files
from hssl_dist.watchdog.position import Position, Rank, words_of
from hssl_dist.watchdog.stacks import save_stacks, to_stderr
from hssl_dist.watchdog.verdict import DONE, GAVE_UP, Verdict, judge

_FLAG_SHARE, _END_SHARE = 0.8, 0.9
_LOOKS, _LONGEST_INTERVAL_S = 40, 1.0
_SHORTEST_GRACE_S, _LONGEST_GRACE_S = 1.0, 5.0
_COLLECT_S = 0.02
_HANG, _LEFT = "hang", "left"
"""Why a flag was raised."""


@runtime_checkable
class Store(Protocol):
    """What is needed of a process group's store, such as torch's TCPStore; a client is one thread's."""

    def clone(self) -> Self:
        """Another client of the same store."""

    def set(self, key: str, value: str) -> None:
        """Put a value."""

    def get(self, key: str) -> bytes:
        """A value that is there."""

    def check(self, keys: list[str]) -> bool:
        """Whether all are there."""


class Watchdog:
    """The thread that watches one rank. `incident` numbers the flags, the same on all ranks."""

    def __init__(
        self,
        store: Store,
        prefix: str,
        rank: int,
        world_size: int,
        timeout_s: float,
        folder: str | None,
        ends_process: bool,
        say: Callable[[str], None] | None,
    ) -> None:
        self._store, self._prefix, self._rank, self._world_size = store, prefix, rank, world_size
        self._timeout_s, self._folder = timeout_s, folder
        self._ends_process, self._say = ends_process, say or to_stderr
        self._interval_s = min(_LONGEST_INTERVAL_S, timeout_s / _LOOKS)
        self._grace_s = min(_LONGEST_GRACE_S, max(_SHORTEST_GRACE_S, (1 - _END_SHARE) * timeout_s))
        self._main = threading.get_ident()
        self._thread = threading.Thread(target=self._run, name="hssl-watchdog", daemon=True)
        self._wake, self._explained = threading.Event(), threading.Event()
        self._asked, self._store_answers = False, True
        self._leaving: str | None = None
        self._incident, self._judged = 0, 0
        self._verdict, self._stacks_written = Verdict((), ""), False

    def start(self) -> None:
        """Begin to watch the thread that calls."""
        self._arm()
        self._thread.start()

    def end(self, how: str) -> None:
        """End the thread; the other ranks hear how this one leaves, and of an error before it is gone."""
        self._leaving = how
        self._wake.set()
        self._thread.join(2 * self._grace_s + self._interval_s)
        faulthandler.cancel_dump_traceback_later()

    def explain(self) -> str | None:
        """See `watchdog.explain`."""
        if not self._fits(Rank.position):
            self._explained.clear()
            self._asked = True
            self._wake.set()
            self._explained.wait(2 * self._grace_s + self._interval_s)
        return self._text() if self._fits(Rank.position) else None

    def _fits(self, position: Position) -> bool:
        """Whether the verdict is of this collective, or will not change any more."""
        return self._verdict.gone or (self._judged == position.number and bool(self._verdict.text))

    def _text(self) -> str:
        if not self._stacks_written:
            return self._verdict.text
        place = "the ranks' standard error" if self._folder is None else files.shown(self._folder)
        return f"{self._verdict.text}; the stacks are in {place}"

    # ------------------------------------------------------------------------------------------ in the thread

    def _run(self) -> None:
        while self._leaving is None:
            self._wake.wait(self._interval_s)
            self._wake.clear()
            self._arm()
            asked = self._asked
            self._with_store(self._look)
            if asked:
                self._asked = False
                self._explained.set()
            self._end_process_if_due()
        self._with_store(self._leave)

    def _arm(self) -> None:
        """Have faulthandler, which needs no thread, write the stacks if this one does not get to run."""
        if sys.__stderr__ is not None:
            timeout_s = _FLAG_SHARE * self._timeout_s + self._interval_s
            faulthandler.dump_traceback_later(timeout_s, file=sys.__stderr__)

    def _with_store(self, action: Callable[[], None]) -> None:
        """Do what needs the store. When it does not answer, who kept it is gone."""
        if self._store_answers:
            try:
                action()
            except RuntimeError:  # torch's DistError
                self._store_answers = False
        unknown = not self._store_answers and not self._verdict.gone and self._leaving is None
        if unknown and (self._asked or self._overdue()):
            self._judged = Rank.position.number
            self._dump(Rank.position)
            text = "rank 0, or what else kept the store of the process group, is gone: look at its log"
            self._verdict = Verdict((0,), text, gone=True)

    def _look(self) -> None:
        position = Rank.position
        if self._store.check([self._key("flag")]):
            self._answer(position, self._store.get(self._key("flag")).decode())
        elif (self._asked and not self._fits(position)) or self._overdue():
            self._store.set(self._key("flag"), _HANG)
            self._answer(position, _HANG)

    def _overdue(self) -> bool:
        position = Rank.position
        timeout_s = position.timeout_s or self._timeout_s
        return (
            (position.waiting or self._ends_process)
            and position.number > self._judged
            and time.monotonic() - position.since_s >= _FLAG_SHARE * timeout_s
        )

    def _answer(self, position: Position, kind: str) -> None:
        """Post where this rank is, write its stacks if the others may wait for it, and judge."""
        frame = sys._current_frames()[self._main]
        code = frame.f_code
        at = f"{code.co_filename}:{frame.f_lineno} in {code.co_name}"
        answer = {"number": position.number, "what": position.what, "step": position.step}
        answer |= {"waiting": position.waiting, "at": at}
        self._store.set(self._key(str(self._rank)), json.dumps(answer))
        if kind == _HANG:
            self._dump(position)
        there = self._collect()
        answers = {rank: json.loads(self._store.get(self._key(str(rank)))) for rank in there["answered"]}
        left = {rank: self._store.get(self._left(rank)).decode() for rank in there["left"]}
        self._verdict = judge(self._world_size, answers, left)
        self._judged = position.number
        self._incident += 1

    def _collect(self) -> dict[str, set[int]]:
        """The ranks that have answered or left, once all have or the grace is over."""
        until_s = time.monotonic() + self._grace_s
        found: dict[str, set[int]] = {"answered": set(), "left": set()}
        pending = set(range(self._world_size))
        while True:
            for rank in sorted(pending):
                if self._store.check([self._left(rank)]):
                    found["left"].add(rank)
                elif self._store.check([self._key(str(rank))]):
                    found["answered"].add(rank)
            pending -= found["answered"] | found["left"]
            if not pending or time.monotonic() >= until_s:
                return found
            time.sleep(_COLLECT_S)

    def _leave(self) -> None:
        how = self._leaving or GAVE_UP
        self._store.set(self._left(self._rank), how)
        if how not in (DONE, GAVE_UP):  # this process may keep the store: it waits until all have read it
            self._store.set(self._key("flag"), _LEFT)
            self._collect()

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{self._incident}/{name}"

    def _left(self, rank: int) -> str:
        return f"{self._prefix}/left/{rank}"

    def _end_process_if_due(self) -> None:
        position = Rank.position
        waited_s = time.monotonic() - position.since_s
        due = waited_s >= _END_SHARE * (position.timeout_s or self._timeout_s)
        blamed = self._judged == position.number and self._verdict.missing
        if not (self._ends_process and due and blamed) or self._rank in self._verdict.missing:
            return
        try:
            self._say(
                f"rank {self._rank} of {self._world_size} waited {waited_s:.0f} s at {position.what}"
                f"{words_of(position.step)}: {self._text()}"
            )
        finally:
            os._exit(1)

    def _dump(self, position: Position) -> None:
        """The stacks of all threads, to the rank's file."""
        state = "in" if position.waiting else "past"
        heading = (
            f"rank {self._rank} of {self._world_size}, {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC: {state} "
            f"collective {position.number} ({position.what or 'none yet'}{words_of(position.step)}) "
            f"for {time.monotonic() - position.since_s:.1f} s"
        )
        url = None if self._folder is None else files.join(self._folder, f"rank-{self._rank:05d}.txt")
        save_stacks(heading, url, self._grace_s)
        self._stacks_written = True
