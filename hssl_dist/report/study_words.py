"""How a study's numbers are written, and what they say in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hssl_dist.report.evaluation import Value
from hssl_dist.report.page import with_sign

Outcome = Literal["above", "below", "includes", "unknown"]

_NONE = "–"  # noqa: RUF001
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Statement:
    """A finding in a sentence; `label` says in two or three words what it comes to."""

    outcome: Outcome
    label: str
    text: str


# ---------------------------------------------------------------------------------------------------- numbers


def exact(value: float) -> str:
    """A number as the tables' files have it: six decimals, nothing for NaN."""
    return "" if math.isnan(value) else f"{value:.{_DIGITS}f}"


def share(fraction: float) -> str:
    """A share of the labels in per cent, with as many digits as it has."""
    return f"{100 * fraction:g}%"


def as_dice(value: float) -> str:
    """Dice in points with one decimal; an en dash for NaN."""
    return _NONE if math.isnan(value) else f"{100 * value:.1f}"


def as_size(value: float) -> str:
    """A size in points with two decimals, without a sign."""
    return f"{abs(100 * value):.2f}"


def as_difference(value: float) -> str:
    """A difference in points with two decimals and its sign; an en dash for NaN."""
    if math.isnan(value):
        return _NONE
    return with_sign(value, as_size(value))


def span(value: Value) -> str:
    """The interval of a difference in brackets; nothing if there is none."""
    return "" if math.isnan(value.low) else f"[{as_difference(value.low)}, {as_difference(value.high)}]"


def as_p(p: float) -> str:
    """A p with two digits that count; an en dash for NaN."""
    if math.isnan(p):
        return _NONE
    return "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


# ------------------------------------------------------------------------------------------------- statements


def outcome_of(value: Value) -> Outcome:
    """Where the interval lies with respect to 0; unknown without one."""
    if math.isnan(value.low):
        return "unknown"
    if value.low > 0.0:
        return "above"
    return "below" if value.high < 0.0 else "includes"


def gain(
    arm: str, scratch: str, fraction: float, found: Value, p: float, tests: int, level: str
) -> Statement:
    """A primary comparison: an arm against scratch with the same few labels.

    `p` is adjusted for the `tests` primary comparisons, which the interval is not.
    """
    by = f"Adjusted for {tests} primary comparisons (Holm)" if tests > 1 else "By its t distribution"
    what = "the difference" if outcome_of(found) == "includes" else "it"
    stands = "stands" if p <= 0.05 else "does not stand"
    of_p = f"{by}, {what} {stands} at 5%: p {_equals(p)}."
    labels: Mapping[Outcome, str] = {"above": "gain shown", "includes": "no gain shown"}
    return _tested(labels, fraction, _compared(arm, scratch, found, level), found, p, of_p)


def headline(arm: str, scratch: str, gains: Sequence[Statement]) -> str:
    """The primary comparisons of all tasks in a sentence."""
    shown = sum(statement.outcome == "above" for statement in gains)
    worse = sum(statement.outcome == "below" for statement in gains)
    unknown = sum(statement.outcome == "unknown" for statement in gains)
    tasks = f"{len(gains)} task{'' if len(gains) == 1 else 's'}"
    gain_of = f"With the fewest labels, the interval of the gain of {arm} over {scratch}"
    said = f"{gain_of} lies above 0 on {shown} of {tasks}"
    said += f", and below 0 on {worse}" if worse else ""
    return f"{said}; on {unknown} it is not known." if unknown else f"{said}."


def between(first: str, other: str, fraction: float, found: Value, p: float, level: str) -> Statement:
    """One arm against another with the same few labels; `p` is not adjusted."""
    labels: Mapping[Outcome, str] = {
        "above": f"better than {other}",
        "includes": f"no difference to {other} shown",
        "below": f"worse than {other}",
    }
    of_p = f"By itself, p {_equals(p)}."
    return _tested(labels, fraction, _compared(first, other, found, level), found, p, of_p)


def to_all_labels(arm: str, scratch: str, fraction: float, found: Value, level: str) -> Statement:
    """An arm with few labels against scratch with all of them: how much of the gap is left."""
    side = "below" if found.value < 0 else "above"
    label = "not known" if math.isnan(found.value) else f"{as_size(found.value)} points {side} all labels"
    text = (
        f"With {share(fraction)} of the labels, {_compared(arm, f'{scratch} with all labels', found, level)}"
    )
    return Statement(outcome_of(found), label, text)


def converged(arm: str, fraction: float, answer: bool | None, found: Value, bound: float) -> Statement:
    """Whether an arm's fine-tuning had converged: without it a gain may be faster learning alone."""
    if answer is None:
        text = f"With {share(fraction)} of the labels, the curves of {arm} have too few points to tell; "
        text += "training.validate_every has to be at most a quarter of the steps."
        return Statement("unknown", "convergence not known", text)
    text = (
        f"With {share(fraction)} of the labels, the last quarter of the steps gave {arm} "
        f"{as_difference(found.value)} points of validation Dice {span(found)}; "
        f"an upper end of at most {as_size(bound)} counts as converged."
    )
    label = f"{arm} had converged" if answer else f"{arm} not shown to have converged"
    return Statement("includes" if answer else "below", label, text)


def _tested(
    labels: Mapping[Outcome, str], fraction: float, compared: str, found: Value, p: float, of_p: str
) -> Statement:
    """A difference and its p, if there is one; less sure where the interval excludes 0 and p does not."""
    outcome = outcome_of(found)
    label = {"below": "worse", "unknown": "not known", **labels}[outcome]
    if outcome in ("above", "below") and p > 0.05:
        label += ", but not firmly"
    text = f"With {share(fraction)} of the labels, {compared}"
    return Statement(outcome, label, text if math.isnan(p) else f"{text} {of_p}")


def _compared(first: str, other: str, found: Value, level: str) -> str:
    if math.isnan(found.value):
        return f"{first} and {other} have no pair of runs in common."
    side = "below" if found.value < 0 else "above"
    said = f"{first} is {as_size(found.value)} Dice points {side} {other}"
    if math.isnan(found.low):
        return f"{said}; one subset, seed and patient give no interval."
    ends = f"{as_difference(found.low)} to {as_difference(found.high)}"
    where = {"above": "all of it above 0", "below": "all of it below 0", "includes": "which includes 0"}
    return f"{said}; {level} interval {ends}, {where[outcome_of(found)]}."


def _equals(p: float) -> str:
    text = as_p(p)
    return text if text.startswith("<") else f"= {text}"
