"""Scores of many cases: means and medians with intervals over patients, and sets of predictions compared."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from jaxtyping import Float64

from hssl_dist.config.evaluate import IntervalConfig
from hssl_dist.segmentation.intervals import (
    ClassEstimates,
    Estimate,
    Statistic,
    mean_known,
    over_patients,
)
from hssl_dist.segmentation.scores import METRICS, ClassScore, Metric, Outcome

STATISTICS: tuple[Statistic, ...] = ("mean", "median")
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


@dataclass(frozen=True, slots=True)
class ScoredCase:
    """The scores of one case: by set of predictions, then by label value."""

    case: str
    patient: str
    scores: Mapping[str, Mapping[int, ClassScore]]


@dataclass(frozen=True, slots=True)
class SetSummary:
    """One set of predictions: by metric and statistic, a column per class; and each class's outcomes."""

    name: str
    estimates: Mapping[str, Mapping[Statistic, ClassEstimates]]
    outcomes: tuple[Mapping[Outcome, int], ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference, other minus first, of one class or of their mean.

    Patients are `better`, `equal` or `worse` with the other set; `p` is that of a two-sided Wilcoxon
    signed-rank test over them, NaN if there is nothing to rank. `unpaired` cases have a score in one set
    alone (the class is in neither label nor the other's prediction) and count in no difference.
    """

    estimate: Estimate
    better: int
    equal: int
    worse: int
    p: float
    unpaired: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """A set against the first: by metric, the difference of each class and of their mean."""

    first: str
    other: str
    each: Mapping[str, tuple[Difference, ...]]
    overall: Mapping[str, Difference]


def summarise(
    cases: Sequence[ScoredCase], name: str, classes: Sequence[int], settings: IntervalConfig
) -> SetSummary:
    """Means and medians of a set over the cases, per class and of the classes' values."""
    patients = [case.patient for case in cases]
    estimates = {
        metric.key: {
            statistic: over_patients(table(cases, name, classes, metric), patients, statistic, settings)
            for statistic in STATISTICS
        }
        for metric in METRICS
    }
    counts = [Counter(case.scores[name][value].outcome for case in cases) for value in classes]
    return SetSummary(name, estimates, tuple({key: count[key] for key in OUTCOMES} for count in counts))


def compare(
    cases: Sequence[ScoredCase], first: str, other: str, classes: Sequence[int], settings: IntervalConfig
) -> Comparison:
    """All paired differences of two sets on the same cases; volume errors are compared by their size."""
    patients = [case.patient for case in cases]
    each, overall = {}, {}
    for metric in METRICS:
        values = [table(cases, name, classes, metric) for name in (first, other)]
        if metric.better == "zero":
            values = [np.abs(part) for part in values]
        *each[metric.key], overall[metric.key] = _differences(
            values[0], values[1], patients, metric, settings
        )
    return Comparison(first, other, {key: tuple(found) for key, found in each.items()}, overall)


def table(
    cases: Sequence[ScoredCase], name: str, classes: Sequence[int], metric: Metric
) -> Float64[np.ndarray, "case class"]:
    """One metric of one set as an array; NaN where there is no score."""
    rows = [[case.scores[name][value].values()[metric.key] for value in classes] for case in cases]
    return np.array(rows, dtype=np.float64).reshape(len(cases), len(classes))


def _differences(
    first: Float64[np.ndarray, "case class"],
    other: Float64[np.ndarray, "case class"],
    patients: Sequence[str],
    metric: Metric,
    settings: IntervalConfig,
) -> list[Difference]:
    """The difference of each class, then that of their mean."""
    differences = other - first
    estimates = over_patients(differences, patients, "mean", settings)
    by_patient = _patient_means(differences, patients)
    columns = [*by_patient.T, mean_known(by_patient)]
    one_sided = np.isnan(first) != np.isnan(other)
    unpaired = [*one_sided.sum(axis=0), one_sided.any(axis=1).sum()]
    return [
        _difference(estimate, column[~np.isnan(column)], metric, int(count))
        for estimate, column, count in zip(
            (*estimates.each, estimates.overall), columns, unpaired, strict=True
        )
    ]


def _patient_means(
    values: Float64[np.ndarray, "case class"], patients: Sequence[str]
) -> Float64[np.ndarray, "patient class"]:
    names, numbers = np.unique(list(patients), return_inverse=True)
    rows = [mean_known(values[numbers == number].T) for number in range(len(names))]
    return np.array(rows).reshape(len(names), values.shape[1])


def _difference(
    estimate: Estimate, by_patient: Float64[np.ndarray, " patient"], metric: Metric, unpaired: int
) -> Difference:
    gain = by_patient if metric.better == "higher" else -by_patient
    return Difference(
        estimate,
        better=int((gain > 0).sum()),
        equal=int((gain == 0).sum()),
        worse=int((gain < 0).sum()),
        p=_signed_rank_p(by_patient),
        unpaired=unpaired,
    )


def _signed_rank_p(differences: Float64[np.ndarray, " patient"]) -> float:
    """Two-sided p; patients without a difference are left out, as Wilcoxon did."""
    from scipy.stats import wilcoxon

    ranked = differences[differences != 0.0]
    return float(wilcoxon(ranked).pvalue) if len(ranked) else math.nan
