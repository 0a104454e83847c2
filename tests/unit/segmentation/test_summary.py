"""Summaries and comparisons of made-up scores, by hand."""

from __future__ import annotations

import math

import pytest

from hssl_dist.config.evaluate import IntervalConfig
from hssl_dist.segmentation.scores import ClassScore, Outcome
from hssl_dist.segmentation.summary import ScoredCase, compare, summarise

SETTINGS = IntervalConfig(resamples=500)
NAN = math.nan


def _score(dice: float, error_ml: float = 0.0, outcome: Outcome = "found") -> ClassScore:
    return ClassScore(outcome, 1.0, 1.0 + error_ml, dice, dice, 10.0 - 10.0 * dice, error_ml, error_ml)


ABSENT = ClassScore("absent", 0.0, 0.0, NAN, NAN, NAN, NAN, NAN)


def _case(case: str, a: dict[int, ClassScore], b: dict[int, ClassScore]) -> ScoredCase:
    return ScoredCase(case, case[0], {"a": a, "b": b})


CASES = [
    _case("p1", {1: _score(0.5, -2.0), 2: ABSENT}, {1: _score(0.7, 1.0), 2: ABSENT}),
    _case("p2", {1: _score(0.7, 1.0), 2: _score(0.2)}, {1: _score(0.6, 1.0), 2: _score(0.3)}),
    _case("q1", {1: _score(0.9), 2: _score(0.4)}, {1: _score(1.0), 2: _score(0.0, 0, "missed")}),
    _case("r1", {1: _score(0.8), 2: ABSENT}, {1: _score(0.8), 2: _score(0.0, 3.0, "spurious")}),
]


def test_a_summary_has_means_medians_and_the_outcomes_of_each_class() -> None:
    summary = summarise(CASES, "b", (1, 2), SETTINGS)
    dice = summary.estimates["dice"]
    assert [found.value for found in dice["mean"].each] == pytest.approx([0.775, 0.1])
    assert [found.value for found in dice["median"].each] == pytest.approx([0.75, 0.0])
    assert dice["mean"].overall.value == pytest.approx(0.4375)
    assert [found.patients for found in dice["mean"].each] == [3, 3]
    assert summary.outcomes[1] == {"found": 1, "missed": 1, "spurious": 1, "absent": 1}
    assert summarise(CASES, "a", (2,), SETTINGS).estimates["dice"]["mean"].each[0].value == pytest.approx(0.3)


def test_differences_are_paired_and_patients_counted_once() -> None:
    comparison = compare(CASES, "a", "b", (1, 2), SETTINGS)
    first, second = comparison.each["dice"]
    assert first.estimate.value == pytest.approx((0.2 - 0.1 + 0.1 + 0.0) / 4)
    # Patient p has 0.05 on average, q 0.1, r nothing.
    assert (first.better, first.equal, first.worse, first.unpaired) == (2, 1, 0, 0)
    assert first.p == pytest.approx(0.5)  # of two patients who differ
    assert second.estimate.value == pytest.approx((0.1 - 0.4) / 2)
    assert (second.better, second.equal, second.worse, second.unpaired) == (1, 0, 1, 1)
    overall = comparison.overall["dice"]
    assert overall.estimate.value == pytest.approx((0.05 - 0.15) / 2)
    # p: mean of 0.05 and 0.1; q: of 0.1 and -0.4; r has class 1 alone.
    assert (overall.better, overall.equal, overall.worse, overall.unpaired) == (1, 1, 1, 1)


def test_lower_distances_and_smaller_volume_errors_are_better() -> None:
    comparison = compare(CASES, "a", "b", (1,), SETTINGS)
    (hd95,), (volume,) = comparison.each["hd95_mm"], comparison.each["volume_error_ml"]
    assert hd95.estimate.value == pytest.approx(-0.5)
    assert (hd95.better, hd95.equal, hd95.worse) == (2, 1, 0)
    assert volume.estimate.value == pytest.approx((abs(1.0) - abs(-2.0)) / 4)
    assert (volume.better, volume.equal, volume.worse) == (1, 2, 0)


def test_equal_sets_have_no_p() -> None:
    same = compare(CASES, "a", "a", (1, 2), SETTINGS).overall["dice"]
    assert (same.estimate.value, same.estimate.low, same.estimate.high) == (0.0, 0.0, 0.0)
    assert (same.better, same.equal, same.worse) == (0, 3, 0)
    assert math.isnan(same.p)
