"""What a benchmark must reach, as a number beside its bound."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Criterion:
    """One requirement: `value` must be at most `bound` (at least, for `at_least`)."""

    name: str
    value: float | None
    """None where this run did not measure it."""
    bound: float
    at_least: bool
    passed: bool | None
    """None where this run could not tell."""
    note: str = ""
