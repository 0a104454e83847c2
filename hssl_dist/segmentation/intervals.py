"""Bootstrap intervals: over patients, and over label subsets, pretraining seeds and patients at once.

The patient is what is drawn anew, never the case: several cases of a patient are alike, and an interval over
cases would be too narrow. Draws depend on the seed and the sorted names alone.

    over_patients(dice, patients, "mean", settings)    # dice has a row per case, a column per class
    hierarchical(differences, settings)                # {(subset, seed, patient): difference}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64
from scipy.special import ndtr, stdtrit

from hssl_dist.config.evaluate import IntervalConfig

Statistic = Literal["mean", "median"]
Numbers = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

_AT_ONCE = 1 << 22
"""Weights held in memory at once: resamples times cases."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and the interval around it; NaN where there is none. `patients` have a score that counts."""

    value: float
    low: float
    high: float
    patients: int


@dataclass(frozen=True, slots=True)
class ClassEstimates:
    """An estimate per column, and one of their mean."""

    each: tuple[Estimate, ...]
    overall: Estimate


def over_patients(
    values: Float64[np.ndarray, "case column"],
    patients: Sequence[str],
    statistic: Statistic,
    settings: IntervalConfig,
) -> ClassEstimates:
    """The statistic of each column over the cases, and the mean of those, with intervals over patients.

    `patients` names the patient of each case; all cases of a drawn patient count. NaN counts nowhere: a
    resample without any value of a column is left out of that column's interval. A percentile interval is
    too narrow for few patients by about sqrt((n-1)/n) and a normal instead of a t quantile, so its tails are
    taken where that is mended (the expanded percentile interval; Hesterberg, The American Statistician 69(4),
    2015). With fewer than two patients there is no interval.
    """
    names, numbers = np.unique(list(patients), return_inverse=True)
    compute = STATISTICS[statistic]
    observed = compute(values, np.ones((1, len(values))))[0]
    draws = np.concatenate(
        [compute(values, weights[:, numbers]) for weights in _drawn(len(names), len(values), settings)]
    )
    known = ~np.isnan(values)
    each = tuple(
        _percentile(observed[column], draws[:, column], _count(numbers[known[:, column]]), settings)
        for column in range(values.shape[1])
    )
    units = _count(numbers[known.any(axis=1)])
    overall = _percentile(float(mean_known(observed)), mean_known(draws), units, settings)
    return ClassEstimates(each, overall)


def _drawn(units: int, cases: int, settings: IntervalConfig) -> Iterator[Numbers]:
    """How often each unit is in each resample, a block of resamples after the other."""
    rng = np.random.default_rng(settings.seed)
    block = max(1, _AT_ONCE // max(1, cases))
    for start in range(0, settings.resamples, block):
        size = min(block, settings.resamples - start)
        yield rng.multinomial(units, np.full(units, 1.0 / units), size=size).astype(np.float64)


def _means(
    values: Float64[np.ndarray, "case column"], weights: Float64[np.ndarray, "resample case"]
) -> Float64[np.ndarray, "resample column"]:
    """Weighted means over the cases, without NaN."""
    known = ~np.isnan(values)
    totals = weights @ np.where(known, values, 0.0)
    counts = weights @ known.astype(np.float64)
    return _divide(totals, counts)


def _medians(
    values: Float64[np.ndarray, "case column"], weights: Float64[np.ndarray, "resample case"]
) -> Float64[np.ndarray, "resample column"]:
    """Medians over the cases, each counted as often as its whole-numbered weight says, without NaN."""
    medians = np.full((len(weights), values.shape[1]), np.nan)
    for column in range(values.shape[1]):
        known = np.flatnonzero(~np.isnan(values[:, column]))
        order = known[np.argsort(values[known, column], kind="stable")]
        if not len(order):
            continue
        upto = np.cumsum(weights[:, order], axis=1)
        total = upto[:, -1]
        middle = [np.argmax(upto >= rank[:, None], axis=1) for rank in ((total + 1) // 2, total // 2 + 1)]
        ordered = values[order, column]
        found = (ordered[middle[0]] + ordered[middle[1]]) / 2.0
        medians[:, column] = np.where(total > 0, found, np.nan)
    return medians


STATISTICS: dict[Statistic, Callable[[Numbers, Numbers], Numbers]] = {"mean": _means, "median": _medians}


def _percentile(value: float, draws: Numbers, units: int, settings: IntervalConfig) -> Estimate:
    """The expanded percentile interval of `over_patients`."""
    known = draws[~np.isnan(draws)]
    if units < 2 or not len(known):
        return Estimate(float(value), math.nan, math.nan, units)
    quantile = float(stdtrit(units - 1, (1.0 + settings.confidence) / 2.0))
    tail = float(ndtr(-math.sqrt(units / (units - 1)) * quantile))
    low, high = np.quantile(known, (tail, 1.0 - tail))
    return Estimate(float(value), float(low), float(high), units)


# ----------------------------------------------------------------------------------------------- hierarchical


@dataclass(frozen=True, slots=True)
class HierarchicalEstimate:
    """Mean difference, its interval, the size of each level, and what the interval is made of: the degrees of
    freedom and the resamples' standard deviation.
    """

    value: float
    low: float
    high: float
    sizes: tuple[int, ...]
    degrees_of_freedom: float
    standard_error: float


def hierarchical(
    differences: Mapping[tuple[str, ...], float], settings: IntervalConfig
) -> HierarchicalEstimate:
    """The mean of paired differences that vary by several factors, such as (label subset, seed, patient).

    Every level is drawn with replacement, by itself, and an entry counts as often as the product of its
    levels' draws says: the pigeonhole bootstrap for crossed factors (Owen, Annals of Applied Statistics
    1(2), 2007), whose variance is never too small but counts what levels have together several times over. Of
    n units n - 1 are drawn, which makes the variance of a mean right for small n (McCarthy and Snowden,
    Vital and Health Statistics 2(95), 1985). The interval is the mean and so many of the resamples' standard
    deviations to both sides as a t distribution with Satterthwaite's degrees of freedom over the levels' own
    variances has: quantiles of the resamples cannot reach beyond both of two seeds. Entries may be missing; a
    level of one unit cannot vary, and the interval then says nothing about it.
    """
    table = dense(differences)
    value, freedom = float(np.nanmean(table)), _satterthwaite(table)
    if math.isnan(freedom):
        return HierarchicalEstimate(value, math.nan, math.nan, table.shape, freedom, math.nan)
    error = float(np.nanstd(_pigeonhole(table, settings)))
    half = float(stdtrit(freedom, (1.0 + settings.confidence) / 2.0)) * error
    return HierarchicalEstimate(value, value - half, value + half, table.shape, freedom, error)


def dense(differences: Mapping[tuple[str, ...], float]) -> Numbers:
    """The table as an array with an axis per level, its units sorted by name; NaN where an entry is missing.

    Raises ValueError for an empty table, keys of different lengths, and differences that are not finite.
    """
    lengths = {len(key) for key in differences}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"keys need one name per level, all alike; found {sorted(lengths) or 'no entry'}")
    if wrong := [key for key, difference in differences.items() if not math.isfinite(difference)]:
        raise ValueError(f"the difference of {wrong[0]} is {differences[wrong[0]]}; leave it out")
    names_of = [sorted(set(names)) for names in zip(*differences, strict=True)]
    units = [{name: place for place, name in enumerate(names)} for names in names_of]
    table = np.full([len(names) for names in units], np.nan)
    for key, difference in differences.items():
        table[tuple(names[name] for names, name in zip(units, key, strict=True))] = difference
    return table


def _pigeonhole(table: Numbers, settings: IntervalConfig) -> Numbers:
    """Weighted means of the table over all resamples; NaN for one that hits no entry."""
    rng = np.random.default_rng(settings.seed)
    drawn = [
        rng.multinomial(max(1, size - 1), np.full(size, 1.0 / size), size=settings.resamples).astype(float)
        for size in table.shape
    ]
    known = ~np.isnan(table)
    totals, counts = (_weighted(part, drawn) for part in (np.where(known, table, 0.0), known.astype(float)))
    return _divide(totals, counts)


def _weighted(table: Numbers, weights: Sequence[Numbers]) -> Numbers:
    """For each resample, the sum of the entries times the weights of their units on all axes."""
    sums = weights[-1] @ table.reshape(-1, table.shape[-1]).T
    sums = sums.reshape(len(sums), *table.shape[:-1])
    for axis in reversed(weights[:-1]):
        sums = np.einsum("r...n,rn->r...", sums, axis)
    return sums


def _satterthwaite(table: Numbers) -> float:
    """Degrees of freedom of the mean's variance, the sum of the levels' own; NaN if no level varies."""
    variances, freedom = [], []
    for axis, size in enumerate(table.shape):
        if size < 2:
            continue
        means = mean_known(np.moveaxis(table, axis, 0).reshape(size, -1))
        variances.append(float(means.var(ddof=1)) / size)
        freedom.append(size - 1)
    total = sum(variances)
    if not variances:
        return math.nan
    if total == 0.0:
        return float(sum(freedom))
    return total**2 / sum(v**2 / k for v, k in zip(variances, freedom, strict=True))


# ----------------------------------------------------------------------------------------------------- pieces


def _divide(totals: Numbers, counts: Numbers) -> Numbers:
    """Totals over counts; NaN where nothing was counted."""
    quotient: Numbers = np.full(totals.shape, np.nan)
    np.divide(totals, counts, out=quotient, where=counts > 0)
    return quotient


def mean_known(values: Numbers) -> Numbers:
    """Mean over the last axis without NaN; NaN where there is nothing else."""
    known = ~np.isnan(values)
    totals, counts = (np.asarray(part.sum(axis=-1)) for part in (np.where(known, values, 0.0), known))
    return _divide(totals, counts)


def _count(numbers: Int64[np.ndarray, " chosen"]) -> int:
    return len(np.unique(numbers))
