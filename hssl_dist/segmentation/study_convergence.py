"""Whether fine-tuning had converged: validation Dice over the steps, and what the last quarter still gave."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hssl_dist.config.evaluate import IntervalConfig
from hssl_dist.segmentation.intervals import HierarchicalEstimate, hierarchical
from hssl_dist.segmentation.study_cells import StudyCell
from hssl_dist.segmentation.study_pairs import Group, key_of

CONVERGED_BELOW = 0.01
"""Dice that the last quarter of the steps may still give: one point."""

Curve = Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Convergence:
    """A group's mean curve and the Dice gained over the last quarter of its steps, with its interval.

    `converged`: the interval's upper end (without an interval, the gain) is at most `CONVERGED_BELOW`; None
    where no curve has two points in its last quarter, which takes a validation at least every quarter of the
    steps. `best_step` is the mean of the chosen checkpoints'.
    """

    group: Group
    runs: int
    curve: tuple[tuple[int, float], ...]
    gain: HierarchicalEstimate | None
    converged: bool | None
    best_step: float


def convergence(cells: Iterable[StudyCell], settings: IntervalConfig) -> tuple[Convergence, ...]:
    """One entry per group, sorted; intervals are over label subsets and seeds."""
    groups: dict[Group, list[StudyCell]] = {}
    for cell in sorted(cells, key=key_of):
        groups.setdefault(key_of(cell).group, []).append(cell)
    return tuple(_of_group(group, found, settings) for group, found in sorted(groups.items()))


def _of_group(group: Group, cells: Sequence[StudyCell], settings: IntervalConfig) -> Convergence:
    gains: dict[tuple[str, ...], float] = {
        (str(cell.subset), str(cell.seed)): last_quarter_gain(cell.curve) for cell in cells
    }
    gains = {run: found for run, found in gains.items() if not math.isnan(found)}
    gain = hierarchical(gains, settings) if gains else None
    converged = None
    if gain is not None:
        converged = (gain.value if math.isnan(gain.high) else gain.high) <= CONVERGED_BELOW
    best_step = statistics.fmean(cell.best_step for cell in cells)
    return Convergence(
        group, len(cells), mean_curve([cell.curve for cell in cells]), gain, converged, best_step
    )


def mean_curve(curves: Sequence[Curve]) -> tuple[tuple[int, float], ...]:
    """Mean at the steps that all curves have: a step some stopped before would be the mean of other runs."""
    values = [dict(curve) for curve in curves]
    common = set.intersection(*(set(found) for found in values)) if values else set()
    return tuple((step, statistics.fmean(found[step] for found in values)) for step in sorted(common))


def last_quarter_gain(curve: Curve) -> float:
    """Dice that the last quarter of the steps gave: slope of the least-squares line through its points, times
    its length, so that one lucky evaluation does not decide. NaN with fewer than two points in it.
    """
    last = max((step for step, _ in curve), default=0)
    points = [(step, dice) for step, dice in curve if step >= 0.75 * last]
    if len(points) < 2:
        return math.nan
    steps, dice = np.array(points, dtype=np.float64).T
    centred = steps - steps.mean()
    return float(centred @ dice / (centred @ centred) * 0.25 * last)
