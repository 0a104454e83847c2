"""Which faults strike a soaked run and when: drawn from a seed, before anything has started.

Times count training alone: they stand still from a fault that stops the run until its first new step. So
every fault strikes while there is something to lose; those of storage and tracking last into recoveries.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from tests.faulty_proxy import INTERNAL_ERROR, REQUEST_TIMEOUT, SLOW_DOWN, Close, Hang, Slow
from tests.faulty_proxy import Fault as StorageFault

Kind = Literal["worker killed", "driver terminated", "tracking outage", "storage fault"]

PER_MINUTE: dict[Kind, float] = {
    "worker killed": 1.0,
    "driver terminated": 0.4,
    "tracking outage": 0.6,
    "storage fault": 1.2,
}
"""Faults per minute of training; there is at least one of each."""
OUTAGE_S = (5.0, 20.0)
"""Shortest and longest time that the tracking server is away, before it is started again."""


@dataclass(frozen=True)
class Weather:
    """How storage fails for a while: a share of its requests, and the shortest and the longest time."""

    name: str
    fault: StorageFault
    share: float
    lasts_s: tuple[float, float]


WEATHER = (
    Weather("503 SlowDown", SLOW_DOWN, 0.5, (5.0, 15.0)),
    Weather("500 InternalError", INTERNAL_ERROR, 0.5, (5.0, 15.0)),
    Weather("400 RequestTimeout", REQUEST_TIMEOUT, 0.3, (5.0, 15.0)),
    Weather("closed before the request", Close(), 0.3, (5.0, 15.0)),
    Weather("closed before the answer", Close(arrives=True), 0.3, (5.0, 15.0)),
    Weather("closed within the answer", Close(after_bytes=64), 0.2, (5.0, 15.0)),
    Weather("no answer for 3 s", Hang(3.0), 0.2, (5.0, 10.0)),
    Weather("an answer 1 s late", Slow(1.0), 0.5, (5.0, 15.0)),
    Weather("503 to every request", SLOW_DOWN, 1.0, (2.0, 4.0)),
)


@dataclass(frozen=True)
class Fault:
    """One fault, `at_s` seconds of training after the run's first step.

    `draw` seeds what else is random about it; `lasts_s` and `weather` are of those that last.
    """

    at_s: float
    kind: Kind
    draw: int
    lasts_s: float = 0.0
    weather: Weather | None = None


def counts(minutes: float) -> dict[Kind, int]:
    """How many faults of each kind there are in so many minutes of training."""
    return {kind: max(1, round(rate * minutes)) for kind, rate in PER_MINUTE.items()}


def plan(seed: int, seconds: float, wanted: dict[Kind, int]) -> list[Fault]:
    """The faults of so many seconds of training, in order of time.

    Each kind's are spread evenly: the time is cut into as many parts as it has faults, and each part has one
    anywhere in it. Every sort of storage fault comes up before one comes again.
    """
    draw = random.Random(seed)
    faults: list[Fault] = []
    for kind, count in wanted.items():
        weather = _shuffled(draw, count) if kind == "storage fault" else [None] * count
        for number in range(count):
            at_s = seconds * (number + draw.random()) / count
            sort = weather[number]
            shortest, longest = (
                sort.lasts_s if sort else OUTAGE_S if kind == "tracking outage" else (0.0, 0.0)
            )
            faults.append(Fault(at_s, kind, draw.getrandbits(32), draw.uniform(shortest, longest), sort))
    return sorted(faults, key=lambda fault: fault.at_s)


def _shuffled(draw: random.Random, count: int) -> list[Weather | None]:
    found: list[Weather | None] = []
    while len(found) < count:
        found += draw.sample(WEATHER, len(WEATHER))
    return found[:count]
