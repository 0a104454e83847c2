"""Several comparisons at once: p of an estimate, and Holm's adjustment."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.special import stdtr

from hssl_dist.segmentation.intervals import HierarchicalEstimate


def two_sided_p(estimate: HierarchicalEstimate) -> float:
    """Two-sided p of the difference being 0: of value over bootstrap standard error, by the t distribution
    with the interval's degrees of freedom, so it is below 1 - confidence where the interval excludes 0. NaN
    where there is no interval.
    """
    if math.isnan(estimate.standard_error):
        return math.nan
    if estimate.standard_error == 0.0:
        return 1.0 if estimate.value == 0.0 else 0.0
    return float(2.0 * stdtr(estimate.degrees_of_freedom, -abs(estimate.value) / estimate.standard_error))


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted p of each comparison of a family (Holm, Scandinavian Journal of Statistics 6(2), 1979).

    Calling those at or below a level true errs with at most that probability in the whole family, whatever
    the comparisons have to do with each other. NaN stays NaN and does not count.
    """
    known = sorted((p, place) for place, p in enumerate(ps) if not math.isnan(p))
    adjusted, highest = [math.nan] * len(ps), 0.0
    for rank, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[place] = highest
    return adjusted
