"""Intervals: values by hand, and how often they hold the truth in simulated studies."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm, t

from hssl_dist.config.evaluate import IntervalConfig
from hssl_dist.segmentation.intervals import STATISTICS, hierarchical, over_patients

FEW = IntervalConfig(resamples=1000)


def _column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


def test_means_and_medians_count_cases_as_often_as_they_are_drawn() -> None:
    values = np.array([[1.0, math.nan], [2.0, 8.0], [9.0, 6.0], [4.0, math.nan]])
    weights = np.array([[1.0, 1, 1, 1], [2, 0, 1, 0], [3, 0, 0, 1], [0, 2, 2, 0]])
    means, medians = (STATISTICS[name](values, weights) for name in ("mean", "median"))
    np.testing.assert_allclose(means, [[4.0, 7.0], [11 / 3, 6.0], [7 / 4, math.nan], [5.5, 7.0]])
    np.testing.assert_allclose(medians, [[3.0, 7.0], [1.0, 6.0], [1.0, math.nan], [5.5, 7.0]])


def test_weighted_medians_equal_numpys_of_repeated_values() -> None:
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=(9, 1)), rng.integers(0, 4, (50, 9)).astype(float)
    expected = [np.median(np.repeat(values[:, 0], row.astype(int))) for row in weights]
    np.testing.assert_allclose(STATISTICS["median"](values, weights)[:, 0], expected)


def test_the_interval_is_the_expanded_percentile_of_all_possible_resamples() -> None:
    values = (0.0, 1.0, 5.0, 6.0)
    every = [np.mean(drawn) for drawn in itertools.product(values, repeat=4)]
    tail = norm.cdf(-math.sqrt(4 / 3) * t.ppf(0.9, 3))
    low, high = np.quantile(every, (tail, 1 - tail))
    settings = IntervalConfig(resamples=200_000, confidence=0.8)
    found = over_patients(_column(*values), "abcd", "mean", settings).each[0]
    assert (found.value, found.patients) == (3.0, 4)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)


def test_two_patients_give_the_whole_range_and_one_gives_none() -> None:
    two = over_patients(_column(0.25, 0.75), "ab", "mean", FEW).overall
    assert (two.value, two.low, two.high) == (0.5, 0.25, 0.75)
    one = over_patients(_column(0.25, 0.75), "aa", "mean", FEW).overall
    assert (one.value, one.patients) == (0.5, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)


def test_the_cases_of_a_patient_stay_together() -> None:
    values = _column(0.0, 0.0, 0.0, 1.0)
    found = over_patients(values, ("a", "a", "a", "b"), "mean", FEW).each[0]
    assert (found.value, found.low, found.high) == (0.25, 0.0, 1.0)


def test_the_overall_value_is_the_mean_of_the_classes() -> None:
    values = np.array([[0.8, 0.1], [0.6, math.nan], [0.7, 0.3]])
    found = over_patients(values, "abc", "mean", FEW)
    assert [estimate.value for estimate in found.each] == pytest.approx([0.7, 0.2])
    assert [estimate.patients for estimate in found.each] == [3, 2]
    assert found.overall.value == pytest.approx(0.45)
    nothing = over_patients(np.full((2, 1), math.nan), "ab", "median", FEW)
    assert math.isnan(nothing.overall.value)
    assert nothing.overall.patients == 0


def test_draws_depend_on_the_seed_and_not_on_the_order_of_the_cases() -> None:
    rng = np.random.default_rng(3)
    values, patients = rng.normal(size=(12, 2)), [f"p{i % 5}" for i in range(12)]
    first = over_patients(values, patients, "mean", FEW)
    order = rng.permutation(12)
    turned = over_patients(values[order], [patients[i] for i in order], "mean", FEW)
    for one, other in zip(first.each, turned.each, strict=True):
        assert (one.low, one.high) == pytest.approx((other.low, other.high))
    other_seed = FEW.model_copy(update={"seed": 1})
    assert over_patients(values, patients, "mean", other_seed).each != first.each


@pytest.mark.parametrize("patients", [8, 25])
def test_intervals_over_patients_hold_the_truth_and_those_over_cases_do_not(patients: int) -> None:
    rng = np.random.default_rng(patients)
    names = np.repeat(np.arange(patients).astype(str), 3)
    studies, held, held_by_cases = 300, 0, 0
    for _ in range(studies):
        values = np.repeat(rng.normal(size=patients), 3) + rng.normal(scale=0.5, size=3 * patients)
        found = over_patients(values[:, None], list(names), "mean", FEW).overall
        naive = over_patients(values[:, None], [str(i) for i in range(len(values))], "mean", FEW).overall
        held += found.low <= 0.0 <= found.high
        held_by_cases += naive.low <= 0.0 <= naive.high
    assert 0.91 <= held / studies <= 0.985  # 0.95, give or take three standard errors
    assert held_by_cases / studies < 0.85


# ----------------------------------------------------------------------------------------------- hierarchical


def _table(differences: np.ndarray) -> dict[tuple[str, ...], float]:
    return {tuple(map(str, place)): float(value) for place, value in np.ndenumerate(differences)}


def _study(rng: np.random.Generator, sizes: tuple[int, int, int]) -> np.ndarray:
    """Differences whose mean is 0: effects of subsets, of runs within them, of patients, and noise."""
    subsets, seeds, patients = sizes
    return (
        rng.normal(scale=1.0, size=(subsets, 1, 1))
        + rng.normal(scale=0.5, size=(subsets, seeds, 1))
        + rng.normal(scale=1.0, size=(1, 1, patients))
        + rng.normal(scale=1.0, size=sizes)
    )


def test_hierarchical_values_by_hand() -> None:
    found = hierarchical(_table(np.array([[1.0, 3.0], [5.0, 7.0]])), FEW)
    assert (found.value, found.sizes) == (4.0, (2, 2))
    # Variances of the means of rows (2, 6) and columns (3, 5): 8/2 and 2/2, one degree of freedom each.
    assert found.degrees_of_freedom == pytest.approx((4 + 1) ** 2 / (4**2 + 1**2))
    # One of two rows and one of two columns is drawn: each entry has probability 1/4.
    many = hierarchical(_table(np.array([[1.0, 3.0], [5.0, 7.0]])), IntervalConfig(resamples=50_000))
    assert many.standard_error == pytest.approx(math.sqrt(5), rel=0.01)
    half = t.ppf(0.975, found.degrees_of_freedom) * found.standard_error
    assert (found.low, found.high) == pytest.approx((4.0 - half, 4.0 + half))


def test_one_level_is_a_bootstrap_of_n_minus_1_whose_variance_is_that_of_the_mean() -> None:
    values = np.random.default_rng(5).normal(size=6)
    found = hierarchical(_table(values), IntervalConfig(resamples=50_000, confidence=0.6826894921370859))
    assert found.degrees_of_freedom == pytest.approx(5)
    half = (found.high - found.low) / 2
    expected = t.ppf(norm.cdf(1), 5) * values.std(ddof=1) / math.sqrt(6)
    assert half == pytest.approx(expected, rel=0.02)


def test_a_level_of_one_unit_and_missing_entries_are_allowed() -> None:
    table = _table(_study(np.random.default_rng(7), (4, 1, 6)))
    whole = hierarchical(table, FEW)
    table.pop(("0", "0", "3"))
    gap = hierarchical(table, FEW)
    assert whole.sizes == gap.sizes == (4, 1, 6)
    assert gap.value == pytest.approx(np.mean(list(table.values())))
    assert gap.value != whole.value
    alone = hierarchical({("a", "b"): 0.5}, FEW)
    assert alone.value == 0.5
    assert math.isnan(alone.low)


def test_a_table_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="keys need one name per level, all alike; found no entry"):
        hierarchical({}, FEW)
    with pytest.raises(ValueError, match=r"found \[1, 2\]"):
        hierarchical({("a",): 1.0, ("a", "b"): 1.0}, FEW)
    with pytest.raises(ValueError, match=r"the difference of \('a',\) is nan; leave it out"):
        hierarchical({("a",): math.nan}, FEW)


@pytest.mark.parametrize("sizes", [(5, 2, 20), (8, 3, 30)])
def test_hierarchical_intervals_hold_the_truth_and_without_a_level_they_do_not(
    sizes: tuple[int, int, int],
) -> None:
    rng = np.random.default_rng(sizes[0])
    studies, held, without_subsets = 200, 0, 0
    for _ in range(studies):
        differences = _study(rng, sizes)
        whole = hierarchical(_table(differences), FEW)
        held += whole.low <= 0.0 <= whole.high
        per_patient = hierarchical(_table(differences.mean(axis=(0, 1))), FEW)
        without_subsets += per_patient.low <= 0.0 <= per_patient.high
    assert held / studies >= 0.93  # never too narrow; what levels have together makes it wider
    assert without_subsets / studies < 0.75
