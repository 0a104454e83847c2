"""How many label subsets, seeds and patients a difference needs to be seen, from a table of earlier ones.

parts = variance_components(differences)              # {(subset, seed, patient): difference}
power(parts, {"subset": 5, "seed": 2, "patient": 40}, 0.01)
units_needed(parts, sizes, "subset", 0.01)            # subsets for 80 % power
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import nctdtr, stdtrit

from hssl_dist.segmentation.intervals import Numbers, dense

LEVELS = ("subset", "seed", "patient")

_MOST_UNITS = 10_000
_NORMAL_FREEDOM = 1e4
"""From here on a t distribution is a normal one; scipy's noncentral t takes no infinity."""
_FAR_SHIFT = 8.0
"""From here on the chance of an error of sign is below 1e-15, and scipy gives NaN for it."""


@dataclass(frozen=True, slots=True)
class VarianceComponents:
    """Variance of each effect: of a level by itself, such as `("subset",)`, and of what levels have together,
    such as `("subset", "seed")`; the one of all levels holds the remainder.
    """

    levels: tuple[str, ...]
    variances: Mapping[tuple[str, ...], float]

    def of_mean(self, sizes: Mapping[str, int]) -> float:
        """Variance of the mean over so many units of each level, all combined with all."""
        return sum(
            variance / math.prod(sizes[level] for level in effect)
            for effect, variance in self.variances.items()
        )

    def freedom(self, sizes: Mapping[str, int]) -> float:
        """Satterthwaite's degrees of freedom of that variance's estimate, at least 1."""
        total = self.of_mean(sizes)
        squares = 0.0
        for effect, variance in self.variances.items():
            units = math.prod(max(1, sizes[level] - 1) for level in effect)
            squares += (variance / math.prod(sizes[level] for level in effect)) ** 2 / units
        return max(1.0, total**2 / squares) if squares else math.inf


def variance_components(
    differences: Mapping[tuple[str, ...], float], levels: Sequence[str] = LEVELS
) -> VarianceComponents:
    """Variance components of a table in which every unit of a level is combined with every one of the others.

    Mean squares are set equal to their expectations (random-effects analysis of variance; Brennan,
    Generalizability Theory, 2001, ch. 3); negative solutions count as 0. A level of one unit has no variance
    that could be seen, and its components are 0. Raises ValueError for a table with gaps.
    """
    table = dense(differences)
    if table.ndim != len(levels):
        raise ValueError(f"keys have {table.ndim} names, but the levels are {', '.join(levels)}")
    if np.isnan(table).any():
        raise ValueError(f"{int(np.isnan(table).sum())} of {table.size} combinations are missing; fill them")
    axes = range(table.ndim)
    effects = [effect for count in reversed(axes) for effect in itertools.combinations(axes, count + 1)]
    solved: dict[tuple[int, ...], float] = {}
    for effect in effects:
        freedom = math.prod(table.shape[axis] - 1 for axis in effect)
        if freedom == 0:
            solved[effect] = 0.0
            continue
        above = sum(
            _copies(table, other) * variance for other, variance in solved.items() if set(effect) < set(other)
        )
        mean_square = _sum_of_squares(table, effect) / freedom
        solved[effect] = (mean_square - above) / _copies(table, effect)
    named = {tuple(levels[axis] for axis in effect): max(0.0, solved[effect]) for effect in reversed(effects)}
    return VarianceComponents(tuple(levels), named)


def power(
    parts: VarianceComponents, sizes: Mapping[str, int], difference: float, confidence: float = 0.95
) -> float:
    """Probability that a two-sided test at that confidence sees a true difference, with so many units.

    The mean over its standard error follows a noncentral t distribution with Satterthwaite's degrees of
    freedom (Westfall, Kenny and Judd, Journal of Experimental Psychology: General 143(5), 2014, for designs
    with crossed random factors). For many units it is the textbook n = (z_{a/2} + z_b)^2 variance / d^2.
    """
    error = math.sqrt(parts.of_mean(sizes))
    if error == 0.0:
        return 1.0 if difference else 0.0
    freedom = min(parts.freedom(sizes), _NORMAL_FREEDOM)
    bound = float(stdtrit(freedom, (1.0 + confidence) / 2.0))
    shift = abs(difference) / error
    wrong_side = float(nctdtr(freedom, shift, -bound)) if shift < _FAR_SHIFT else 0.0
    return 1.0 - float(nctdtr(freedom, shift, bound)) + wrong_side


def units_needed(
    parts: VarianceComponents,
    sizes: Mapping[str, int],
    level: str,
    difference: float,
    wanted: float = 0.8,
    confidence: float = 0.95,
) -> int | None:
    """Fewest units of a level (at least 2), the others as in `sizes`, that give the wanted power.

    None if not even 10,000 do: then what the other levels add is too much, and they need more units.
    """
    low, high = 1, _MOST_UNITS

    def reached(units: int) -> bool:
        return power(parts, {**sizes, level: units}, difference, confidence) >= wanted

    if not reached(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def _copies(table: Numbers, effect: tuple[int, ...]) -> int:
    """Entries of the table that share one value of the effect."""
    return math.prod(size for axis, size in enumerate(table.shape) if axis not in effect)


def _sum_of_squares(table: Numbers, effect: tuple[int, ...]) -> float:
    """Sum of squares of an effect: what its levels' mean has beyond the means of fewer levels."""
    deviation: Numbers = np.zeros([table.shape[axis] if axis in effect else 1 for axis in range(table.ndim)])
    for count in range(len(effect) + 1):
        for kept in itertools.combinations(effect, count):
            over = tuple(axis for axis in range(table.ndim) if axis not in kept)
            deviation = deviation + (-1) ** (len(effect) - count) * table.mean(axis=over, keepdims=True)
    return float((deviation**2).sum()) * _copies(table, effect)
