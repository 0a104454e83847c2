"""What a driver and its workers on Ray tell each other, through one small actor.

Workers tell lines for the driver's console, metrics, what they have begun, and how it ended; the driver tells
them that it was asked to stop, since signals reach the driver alone. Ray has to be connected before this
module is imported.
"""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hssl_dist.console import Console
from hssl_dist.errors import HsslError, Interrupted
from hssl_dist.jobs import cluster
from hssl_dist.jobs.stopping import asked_by

POLL_S = 0.25
End = Literal["done", "interrupted"] | HsslError
"""How a piece of work ended, for good."""


class Liaison:
    """What the driver and its workers tell each other."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque()
        self._metrics: deque[tuple[int, dict[str, float]]] = deque()
        self._stop = False
        self._begun: set[int] = set()
        self._end: End | None = None

    def say(self, line: str) -> None:
        """A line for the driver's console."""
        self._lines.append(line)

    def lines(self) -> list[str]:
        """The lines said since the last call; they may be said by other threads meanwhile."""
        return [self._lines.popleft() for _ in range(len(self._lines))]

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Metrics of a step, for the driver to track."""
        self._metrics.append((step, metrics))

    def metrics(self) -> list[tuple[int, dict[str, float]]]:
        """The metrics logged since the last call, in order."""
        metrics, self._metrics = list(self._metrics), deque()
        return metrics

    def request_stop(self) -> set[int]:
        """Ask the workers to save a checkpoint and end. The pieces that have begun; no others will."""
        self._stop = True
        return self._begun

    def lose(self) -> None:
        """All that had begun is lost, and may begin again."""
        self._begun = set()

    def stop_requested(self) -> bool:
        """Whether the workers are asked to end."""
        return self._stop

    def begin(self, piece: int) -> bool:
        """Whether a piece of work may begin; not once the workers are asked to end."""
        if not self._stop:
            self._begun.add(piece)
        return not self._stop

    def conclude(self, end: End) -> None:
        """How it ended, by who says so first: what the others say then may be of no more than that."""
        if self._end is None:
            self._end = end

    def end(self) -> End | None:
        """How it ended; None while it has not."""
        return self._end


def start_liaison(kind: type[Liaison] = Liaison, *arguments: Any) -> Any:
    """A liaison on this process's node: it is to live as long as the driver does, not as long as a worker."""
    node = ray.get_runtime_context().get_node_id()
    here = NodeAffinitySchedulingStrategy(node, soft=False)
    actor: Any = ray.remote(num_cpus=0)(kind)
    return actor.options(scheduling_strategy=here).remote(*arguments)


# ------------------------------------------------------------------------------------------------- the driver


class Relay:
    """Says and logs in the driver what workers tell, and tells them that a stop was asked for.

    `log` gets their metrics. `poll` is to be called often.
    """

    def __init__(
        self,
        liaison: Any,
        console: Console,
        stop_requested: Callable[[], bool],
        log: Callable[[int, Mapping[str, float]], None] | None = None,
    ) -> None:
        self._liaison, self._console, self._log = liaison, console, log
        self._stop_requested = stop_requested
        self._head = cluster.HeadWatch(ray.get_runtime_context().gcs_address, console)
        self._said = self._ask()
        self._stop: list[Any] = []
        self.begun: set[int] | None = None
        """The pieces that have begun and are not lost, once the workers have heard of a stop; None before."""

    def poll(self) -> None:
        """Look once, without waiting long. Raises WorkerError if the cluster's head is gone."""
        self._head.check()
        if _are_there(self._said):
            self._pass_on()
            self._said = self._ask()
        if not self._stop and self._stop_requested():
            self._console.say("asked to stop: saving a checkpoint")
            self._stop = [self._liaison.request_stop.remote()]
        if self._stop and _are_there(self._stop):
            (self.begun,) = ray.get(self._stop)
            self._stop = [self._liaison.request_stop.remote()]

    def finish(self) -> None:
        """Pass on what is left."""
        self._pass_on()
        self._said = self._ask()
        self._pass_on()

    def _ask(self) -> list[Any]:
        return [self._liaison.lines.remote(), self._liaison.metrics.remote()]

    def _pass_on(self) -> None:
        lines, metrics = ray.get(self._said)
        for line in lines:
            self._console.say(line)
        for step, values in metrics:
            if self._log is not None:
                self._log(step, values)


def _are_there(answers: list[Any]) -> bool:
    """Whether all have come in a moment. Not `get`, which would wait for a lost cluster for ever."""
    return len(ray.wait(answers, num_returns=len(answers), timeout=POLL_S)[0]) == len(answers)


# ------------------------------------------------------------------------------------------------ the workers


def driver_console(liaison: Any) -> Console:
    """A console whose lines the driver says; each is told once `say` has returned."""
    return Console(_Lines(liaison))  # type: ignore[arg-type]


class _Lines(io.TextIOBase):
    """The stream of such a console, with all of a stream that it uses."""

    def __init__(self, liaison: Any) -> None:
        self._liaison, self._begun = liaison, ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            _answer(self._liaison.say.remote(line))
        return len(text)


@contextmanager
def working(liaison: Any, piece: int = 0) -> Iterator[None]:
    """Inside, a worker does a piece of the driver's work, and `stop_requests` says that a stop was asked for
    once the driver has been. Raises Interrupted if that was before it began.
    """
    if not _answer(liaison.begin.remote(piece)):
        raise Interrupted("asked to stop before it began")
    with asked_by(asked_now_and_then(liaison)):
        yield


def asked_now_and_then(liaison: Any) -> Callable[[], bool]:
    """Asks the liaison at most every `POLL_S` seconds; once asked to stop it stays so."""
    asked, next_s = False, 0.0

    def stop_requested() -> bool:
        nonlocal asked, next_s
        if not asked and time.monotonic() >= next_s:
            asked = _answer(liaison.stop_requested.remote())
            next_s = time.monotonic() + POLL_S
        return asked

    return stop_requested


def _answer(reference: Any) -> Any:
    """What an actor answers.

    A task whose main thread waits gives up its CPUs meanwhile, and Ray starts another task on them; its other
    threads may wait.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(ray.get, reference).result()
