"""One attempt at a soaked run: `hssl pretrain` in a process of its own, and what its lines tell, and when."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import psutil

Told = Literal["started", "cluster", "workers", "resumed", "step", "saved", "struck", "ended"]
"""What happens to a run: an attempt is started, it joins the cluster, its workers train, from a checkpoint; a
step is done, a checkpoint is saved; a fault stops the run; an attempt has ended."""

_LINES: tuple[tuple[Told, re.Pattern[str]], ...] = (
    ("cluster", re.compile(r"joined the Ray cluster at ")),
    ("workers", re.compile(r"training on (\d+) workers?$")),
    ("resumed", re.compile(r"going on from the checkpoint of step (\d+)$")),
    ("step", re.compile(r"step (\d+) of \d+: loss ")),
    ("saved", re.compile(r"step (\d+) of \d+: checkpoint saved$")),
)
_WORKER = "ray::RayTrainWorker"
_END_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Event:
    """Something that happened, by the monotonic clock; `number` is a step, a count or an exit status."""

    at_s: float
    what: Told
    number: int = 0


def told(line: str) -> tuple[Told, int] | None:
    """What a line of the job says, and of which step or how many; None for all other lines."""
    for what, pattern in _LINES:
        if match := pattern.match(line):
            return what, int(match[1]) if match.lastindex else 0
    return None


def is_training(events: Sequence[Event]) -> bool:
    """Whether the present workers have done a step; lines of those that were killed may still come in."""
    stepped = False
    for event in reversed(events):
        if event.what == "step":
            stepped = True
        elif event.what in ("started", "workers", "struck", "ended"):
            return stepped and event.what == "workers"
    return False


class Job:
    """A running attempt; at the end of its context nothing of it is left.

    Its lines go to the file `log`, and as events to the end of `events`, which several attempts share. Its
    workers are descendants of the process `cluster`.
    """

    def __init__(
        self, config: Path, environment: dict[str, str], log: Path, events: list[Event], cluster: int
    ) -> None:
        self.events, self._log, self._cluster = events, log, cluster
        self.summary: dict[str, Any] = {}
        events.append(Event(time.monotonic(), "started"))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hssl_dist.pretrain", "--config", str(config), "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self._reading = threading.Thread(target=self._read, name="soaked-job")
        self._reading.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()  # the cluster ends its workers
        self.process.wait()
        self._reading.join(_END_TIMEOUT_S)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self._log.open("a") as log, self.process.stdout:
            for line in self.process.stdout:
                log.write(f"{time.monotonic():.2f} {line}")
                log.flush()
                if (found := told(line.rstrip("\n"))) is not None:
                    self.events.append(Event(time.monotonic(), *found))
                elif line.startswith('{"'):
                    self.summary = json.loads(line)

    def is_training(self) -> bool:
        """Whether its present workers have done a step."""
        return is_training(self.events)

    def worker_pids(self) -> list[int]:
        """Process ids of its training workers."""
        found = []
        for process in psutil.Process(self._cluster).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if " ".join(process.cmdline()).startswith(_WORKER):
                    found.append(process.pid)
        return sorted(found)

    def kill_worker(self, choice: int) -> bool:
        """SIGKILL to one of its workers, chosen by a number; whether there was one."""
        pids = self.worker_pids()
        if not pids:
            return False
        self.events.append(Event(time.monotonic(), "struck"))
        os.kill(pids[choice % len(pids)], signal.SIGKILL)
        return True

    def terminate(self) -> None:
        """SIGTERM to the driver alone, as a scheduler sends it."""
        self.events.append(Event(time.monotonic(), "struck"))
        self.process.send_signal(signal.SIGTERM)

    def ended(self) -> int | None:
        """Its exit status, once all its lines are read; None while it runs."""
        status = self.process.poll()
        if status is None:
            return None
        self._reading.join(_END_TIMEOUT_S)
        if not self.events or self.events[-1].what != "ended":
            self.events.append(Event(time.monotonic(), "ended", status))
        return status

    def said(self) -> str:
        """All lines of the run so far."""
        return self._log.read_text()
