"""What a study as it was run could see, and how much larger it would have to be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hssl_dist.segmentation.intervals import dense
from hssl_dist.segmentation.power import LEVELS, power, units_needed, variance_components

WANTED_POWER = 0.8


@dataclass(frozen=True, slots=True)
class Power:
    """Power of a paired difference for a true one of `difference` Dice, two-sided at `confidence`.

    `variances` are those of each effect, named as in `subset x patient`; `needed` the fewest units of a level
    for a power of 0.8 with the others as they are, None if no number of them is enough. `dropped` units were
    left out by level because combinations were missing. A level of one unit is in `unseen`: its variance
    could not be seen and counts as 0, so the power is too high and more units of it were not asked for.
    """

    difference: float
    sizes: Mapping[str, int]
    dropped: Mapping[str, int]
    unseen: tuple[str, ...]
    variances: Mapping[str, float]
    standard_error: float
    power: float
    needed: Mapping[str, int | None]


def power_of(
    differences: Mapping[tuple[str, ...], float], difference: float, confidence: float
) -> Power | None:
    """The power behind differences by (subset, seed, patient); None if there are none."""
    if not differences:
        return None
    whole, dropped = complete_block(differences)
    table = dense(whole)
    sizes = dict(zip(LEVELS, table.shape, strict=True))
    parts = variance_components(whole)
    unseen = tuple(level for level in LEVELS if sizes[level] == 1)
    return Power(
        difference,
        sizes,
        dropped,
        unseen,
        {" x ".join(effect): variance for effect, variance in parts.variances.items()},
        math.sqrt(parts.of_mean(sizes)),
        power(parts, sizes, difference, confidence),
        {
            level: units_needed(parts, sizes, level, difference, WANTED_POWER, confidence)
            for level in LEVELS
            if level not in unseen
        },
    )


def complete_block(
    differences: Mapping[tuple[str, ...], float],
) -> tuple[dict[tuple[str, ...], float], dict[str, int]]:
    """The entries left once no combination is missing, and how many units of each level were left out for it.

    Time and again the unit that lacks the largest share of its combinations is left out, of equal ones that
    of the first level and the first by name; never the only unit of a level.
    """
    left = dict(differences)
    dropped = dict.fromkeys(LEVELS, 0)
    while True:
        gaps = np.isnan(dense(left))
        if not gaps.any():
            return left, dropped
        shares = [gaps.mean(axis=tuple({0, 1, 2} - {axis})) for axis in range(gaps.ndim)]
        several = [share.max() if len(share) > 1 else 0.0 for share in shares]
        axis = int(np.argmax(several))
        names = sorted({key[axis] for key in left})
        worst = names[int(np.argmax(shares[axis]))]
        left = {key: value for key, value in left.items() if key[axis] != worst}
        dropped[LEVELS[axis]] += 1
