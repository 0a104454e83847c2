"""Which collective this process's rank is in, noted in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Position(NamedTuple):
    """Where a rank is: in its collective `number` (from 1), or past it if it is not `waiting`.

    `since_s` is when it came there (monotonic); `timeout_s` is the collective's own deadline if it has one.
    """

    number: int = 0
    what: str = ""
    step: int | None = None
    waiting: bool = False
    since_s: float = 0.0
    timeout_s: float | None = None


class Rank:
    """This process's rank; it is in one process group at most, as torch's default group."""

    position = Position()
    step: int | None = None


def begin_step(step: int) -> None:
    """Collectives from now on are of this step."""
    Rank.step = step


def in_step() -> str:
    """` in step 7`, or nothing before the first step."""
    return words_of(Rank.step)


def words_of(step: int | None) -> str:
    """` in step 7`, or nothing without a step."""
    return "" if step is None else f" in step {step}"


@contextmanager
def noted(what: str, timeout_s: float | None = None) -> Iterator[None]:
    """Inside, this rank is in a collective, which all ranks must come to in the same order.

    `what` says what for, as in "failed at gathering rows". `timeout_s` is its deadline if not the group's.
    """
    number = Rank.position.number + 1
    Rank.position = Position(number, what, Rank.step, True, time.monotonic(), timeout_s)
    try:
        yield
    finally:
        Rank.position = Rank.position._replace(waiting=False)
