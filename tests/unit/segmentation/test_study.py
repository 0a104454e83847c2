"""A study's statistics: against loops written out, against known effects, and with cells that are missing."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import numpy as np
import pytest

from hssl_dist.segmentation.intervals import hierarchical
from hssl_dist.segmentation.multiplicity import holm, two_sided_p
from hssl_dist.segmentation.study import Questions, summarise_study
from hssl_dist.segmentation.study_cells import StudyCell
from hssl_dist.segmentation.study_pairs import CellKey, Group, key_of, paired, patient_dice, unlike_precisions
from tests.study_cells import FEW, GAINS, cell, row_of, scored, simulated, summarised


def _means(cells: list[StudyCell], task: str, fraction: float, arm: str) -> dict[tuple[int, int, str], float]:
    """The slow reference: Dice by (subset, seed, patient)."""
    found = {}
    for one in cells:
        if (one.task, one.fraction, one.arm) != (task, fraction, arm):
            continue
        for patient in {case.patient for case in one.cases}:
            of_cases = []
            for case in one.cases:
                if case.patient == patient:
                    classes = [value for value in case.dice.values() if value is not None]
                    of_cases.append(sum(classes) / len(classes))
            found[one.subset, one.seed, patient] = sum(of_cases) / len(of_cases)
    return found


# ------------------------------------------------------------------------------------------- means and pairs


def test_a_patient_is_the_mean_of_its_cases_and_a_case_of_its_classes() -> None:
    cases = (
        scored("a1", "a", 0.2, 0.4),
        scored("a2", "a", None, 0.9),
        scored("b", "b", None, None),
        scored("c", "c", 0.0, 1.0),
    )
    assert patient_dice(cell(cases=cases)) == pytest.approx({"a": (0.3 + 0.9) / 2, "c": 0.5})


def test_rows_equal_loops_over_the_cells() -> None:
    cells = simulated(GAINS)
    summary = summarised(cells)
    assert [row.group for row in summary.rows] == [
        Group(task, fraction, arm)
        for task in ("acdc", "hippocampus")
        for fraction in (0.05, 0.1, 1.0)
        for arm in ("scratch", "single", "multi")
    ]
    for row in summary.rows:
        known = _means(cells, *row.group)
        by_run: dict[tuple[int, int], list[float]] = {}
        for (subset, seed, _), value in known.items():
            by_run.setdefault((subset, seed), []).append(value)
        runs = {run: sum(values) / len(values) for run, values in by_run.items()}
        assert row.dice.value == pytest.approx(sum(runs.values()) / len(runs))
        assert row.sd == pytest.approx(statistics.stdev(runs.values()))
        of_seeds = [statistics.mean(v for (_, s), v in runs.items() if s == seed) for seed in (0, 1)]
        assert row.sd_seeds == pytest.approx(statistics.stdev(of_seeds))
        subsets = 1 if row.group.fraction == 1.0 else 5
        assert (row.subsets, row.seeds, row.runs) == (subsets, 2, 2 * subsets)
        if subsets == 1:
            assert math.isnan(row.sd_subsets)
            continue
        of_subsets = [(runs[subset, 0] + runs[subset, 1]) / 2 for subset in range(subsets)]
        assert row.sd_subsets == pytest.approx(statistics.stdev(of_subsets))


def test_differences_pair_subset_seed_and_patient() -> None:
    cells = simulated(GAINS)
    summary = summarised(cells)
    for row in summary.rows:
        if row.group.arm == "scratch":
            assert row.difference is None
            continue
        arm = _means(cells, *row.group)
        scratch = _means(cells, row.group.task, row.group.fraction, "scratch")
        differences = {tuple(map(str, key)): arm[key] - scratch[key] for key in arm}
        expected = hierarchical(differences, FEW)
        assert row.difference is not None
        found = row.difference.estimate
        assert (found.value, found.low, found.high) == pytest.approx(
            (expected.value, expected.low, expected.high)
        )
        assert found.sizes == expected.sizes
    assert [(pair.first, pair.other.arm) for pair in summary.pairs] == [
        (Group(task, fraction, "multi"), "single")
        for task in ("acdc", "hippocampus")
        for fraction in (0.05, 0.1, 1.0)
    ]


def test_gaps_pair_every_subset_with_the_only_one_of_all_labels() -> None:
    cells = simulated(GAINS)
    gaps = {(gap.first, gap.other): gap for gap in summarised(cells).gaps}
    for task, fraction in itertools.product(("hippocampus", "acdc"), (0.05, 0.1)):
        for arm, other in (("multi", "multi"), ("multi", "scratch"), ("scratch", "scratch")):
            few, every = _means(cells, task, fraction, arm), _means(cells, task, 1.0, other)
            expected = [
                value - every[0, seed, patient]
                for (subset, seed, patient), value in few.items()
                if (0, seed, patient) in every
            ]
            gap = gaps[Group(task, fraction, arm), Group(task, 1.0, other)]
            assert gap.estimate.value == pytest.approx(sum(expected) / len(expected))
            assert gap.estimate.sizes == (5, 2, len(expected) // 10)
            assert math.isnan(gap.p)
    assert len(gaps) == 2 * 2 * (1 + 2 + 2)


def test_known_effects_are_found_and_their_absence_too() -> None:
    summary = summarised(simulated({"multi": 0.03, "single": 0.0}, seeds=4))
    assert len(summary.verdicts) == 2
    for verdict in summary.verdicts:
        assert verdict.contrast.estimate.low > 0.0
        assert verdict.contrast.first.fraction == 0.05
        assert verdict.contrast.estimate.value == pytest.approx(0.03, abs=0.008)
        assert verdict.p_primary < 0.05
    null = summarise_study(simulated({"multi": 0.0}), Questions("multi"), FEW)
    assert len(null.verdicts) == 2
    assert all(found.contrast.estimate.low < 0.0 < found.contrast.estimate.high for found in null.verdicts)
    worse = summarise_study(simulated({"multi": -0.04}), Questions("multi"), FEW)
    assert len(worse.verdicts) == 2
    assert all(found.contrast.estimate.high < 0.0 for found in worse.verdicts)


def test_intervals_of_simulated_studies_hold_the_true_gain() -> None:
    held = 0
    for seed in range(100):
        cells = simulated({"multi": 0.01}, tasks=("acdc",), fractions=(0.05,), seed=seed)
        (verdict,) = summarise_study(cells, Questions("multi"), FEW).verdicts
        held += verdict.contrast.estimate.low <= 0.01 <= verdict.contrast.estimate.high
    assert held / 100 >= 0.9  # 0.95 less two standard errors; it errs on the wide side


def test_nothing_depends_on_the_order_of_the_cells() -> None:
    cells = simulated(GAINS, tasks=("acdc",))
    turned = cells.copy()
    random.Random(0).shuffle(turned)
    assert repr(summarised(cells)) == repr(summarised(turned))  # NaN equals nothing, its text does


# ------------------------------------------------------------------------------------------------- what lacks


def test_missing_cells_are_named_and_their_pairs_left_out() -> None:
    whole = simulated(GAINS, tasks=("acdc",), fractions=(0.05, 1.0))
    gone = CellKey("acdc", 0.05, "scratch", 3, 1)
    cells = [one for one in whole if key_of(one) != gone]
    summary = summarised(cells)
    assert summary.missing == (gone,)
    multi = row_of(summary, Group("acdc", 0.05, "multi"))
    assert (multi.runs, multi.left_out, multi.difference.unpaired_runs) == (9, ((3, 1),), ((3, 1),))
    differences = paired(
        {(one.subset, one.seed): patient_dice(one) for one in cells if _is(one, "multi")},
        {(one.subset, one.seed): patient_dice(one) for one in cells if _is(one, "scratch")},
    ).differences
    assert len(differences) == 9 * 12
    assert multi.difference.estimate.value == pytest.approx(statistics.fmean(differences.values()))
    assert multi.power.dropped == {"subset": 1, "seed": 0, "patient": 0}


def test_means_and_curves_are_of_the_runs_that_all_arms_have() -> None:
    """A running study: scratch is a subset ahead, an easy one, on which no other arm has been scored."""
    flat = ((10, 0.3), (20, 0.4))
    cells = [
        cell(arm, subset=subset, cases=(scored("a", "a", dice), scored("b", "b", dice)), curve=curve)
        for arm, subset, dice, curve in (
            ("scratch", 0, 0.60, flat),
            ("multi", 0, 0.61, flat),
            ("scratch", 1, 0.70, flat),
            ("multi", 1, 0.71, flat),
            ("scratch", 2, 0.95, ((10, 0.9), (20, 0.9))),
        )
    ]
    cells[3] = cells[3].model_copy(update={"cases": (scored("a", "a", 0.71), scored("b", "b", None))})
    summary = summarised(cells)
    scratch, multi = summary.rows
    assert (scratch.dice.value, multi.dice.value) == pytest.approx((1.9 / 3, 1.93 / 3))
    assert multi.difference.estimate.value == pytest.approx(multi.dice.value - scratch.dice.value)
    assert (scratch.runs, scratch.subsets, scratch.left_out) == (2, 2, ((2, 0),))
    assert (multi.runs, multi.left_out) == (2, ())
    assert [found.runs for found in summary.convergence] == [2, 2]
    assert [dict(found.curve) for found in summary.convergence] == [dict(flat)] * 2


def test_arms_without_a_run_in_common_have_no_means() -> None:
    summary = summarised([cell("scratch", seed=0), cell("multi", seed=1)])
    assert [(row.runs, math.isnan(row.dice.value), row.left_out) for row in summary.rows] == [
        (0, True, ((0, 0),)),
        (0, True, ((0, 1),)),
    ]
    assert summary.convergence == ()


def _is(one: StudyCell, arm: str) -> bool:
    return (one.fraction, one.arm) == (0.05, arm)


def test_a_plan_says_what_is_missing_and_arms_may_have_fewer_seeds() -> None:
    cells = [one for one in simulated(GAINS, tasks=("acdc",)) if one.arm != "single" or one.seed == 0]
    assert len(summarised(cells).missing) == 5 + 5 + 1
    planned = {key_of(one) for one in cells}
    assert summarised(cells, planned=planned).missing == ()
    more = CellKey("acdc", 0.25, "multi", 0, 0)
    assert summarised(cells, planned=planned | {more}).missing == (more,)


def test_pairs_of_unlike_precision_are_counted_where_both_say_theirs() -> None:
    def told(one: StudyCell, lower: bool) -> StudyCell:
        return one.model_copy(update={"precision": "bfloat16" if lower else "float32"})

    cells = simulated(GAINS)
    assert unlike_precisions(cells) == {}, "cells of before do not say"
    assert unlike_precisions(told(one, lower=one.seed == 1) for one in cells) == {}, "a pair has one seed"
    odd = [key_of(one) for one in cells if one.task == "acdc" and one.arm != "scratch" and one.seed == 0]
    mixed = [told(one, lower=key_of(one) in odd) for one in cells]
    assert unlike_precisions(mixed) == {"acdc": len(odd)}
    assert unlike_precisions(one for one in mixed if one.arm != "scratch") == {}, "without a partner"


def test_patients_of_one_side_alone_are_counted() -> None:
    first = {(0, 0): {"a": 0.5, "b": 0.6}, (1, 0): {"a": 0.5}}
    other = {(0, 0): {"a": 0.25, "c": 0.1}, (2, 0): {"a": 0.1}}
    found = paired(first, other)
    assert found.differences == {("0", "0", "a"): 0.25}
    assert found.unpaired_runs == ((1, 0), (2, 0))
    assert found.unpaired_patients == 2


def test_across_fractions_several_full_runs_pair_by_their_own_subset() -> None:
    few = {(subset, 0): {"a": 0.5 + 0.1 * subset} for subset in range(3)}
    every = {(0, 0): {"a": 0.9}, (1, 0): {"a": 0.8}}
    assert paired(few, every, across_fractions=True).differences == pytest.approx(
        {("0", "0", "a"): -0.4, ("1", "0", "a"): -0.2}
    )
    one = {(7, 0): {"a": 0.9}}
    assert len(paired(few, one, across_fractions=True).differences) == 3
    assert paired(few, one).differences == {}


def test_the_claim_stays_at_the_smallest_share_that_is_planned() -> None:
    cells = [one for one in simulated(GAINS, tasks=("acdc",)) if one.arm != "multi" or one.fraction == 1.0]
    planned = {key_of(one) for one in simulated(GAINS, tasks=("acdc",))}
    (verdict,) = summarised(cells, planned=planned).verdicts
    assert verdict.contrast.first == Group("acdc", 0.05, "multi")
    assert math.isnan(verdict.contrast.estimate.value)
    assert math.isnan(verdict.p_primary)


def test_without_any_pair_the_verdict_knows_nothing_but_there_is_arow_of() -> None:
    cells = [cell("scratch", seed=0), cell("multi", seed=1)]
    summary = summarised(cells)
    (verdict,) = summary.verdicts
    assert math.isnan(verdict.contrast.estimate.low)
    assert verdict.contrast.unpaired_runs == ((0, 0), (0, 1))
    assert summary.rows[1].power is None
    assert summary.comparisons == 0
    (verdict,) = summarised([cell("multi")]).verdicts
    assert math.isnan(verdict.contrast.estimate.value)
    assert summarised([cell("single"), cell()]).verdicts == ()


def test_cells_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no cell to report; run the study first"):
        summarised([])
    with pytest.raises(ValueError, match="scored on test and validation patients; report one part alone"):
        summarised([cell(), cell("multi", part="validation")])
    with pytest.raises(
        ValueError, match="scratch on heart, 5% of the labels, subset 0, seed 0 is there twice"
    ):
        summarised([cell(), cell()])
    with pytest.raises(ValueError, match=r"scratch on heart, 7\.5% of the labels, subset 0, seed 0 is there"):
        summarised([cell(fraction=0.075), cell(fraction=0.075)])


# ---------------------------------------------------------------------------------------- many comparisons


def test_holm_by_hand() -> None:
    nan = math.nan
    assert holm([0.01, 0.04, 0.03, nan]) == pytest.approx([0.03, 0.06, 0.06, nan], nan_ok=True)
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_p_goes_with_the_interval() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        values = rng.normal(0.4, 1.0, (6, 4, 12)) + rng.normal(scale=0.5, size=(6, 1, 1))
        table = {tuple(map(str, place)): float(value) for place, value in np.ndenumerate(values)}
        found = hierarchical(table, FEW)
        assert (two_sided_p(found) < 0.05) == (found.low > 0.0 or found.high < 0.0)
    assert math.isnan(two_sided_p(hierarchical({("a",): 1.0}, FEW)))
    assert two_sided_p(hierarchical({("a",): 1.0, ("b",): 1.0}, FEW)) == 0.0
    assert two_sided_p(hierarchical({("a",): 0.0, ("b",): 0.0}, FEW)) == 1.0


def test_two_seeds_that_differ_do_not_make_a_gain() -> None:
    rng = np.random.default_rng(0)
    studies, shown = 200, 0
    for _ in range(studies):
        values = (
            rng.normal(scale=0.5, size=(5, 1, 1))
            + rng.normal(scale=1.0, size=(1, 2, 1))
            + rng.normal(scale=0.5, size=(1, 1, 20))
            + rng.normal(size=(5, 2, 20))
        )
        table = {tuple(map(str, place)): float(value) for place, value in np.ndenumerate(values)}
        found = hierarchical(table, FEW)
        shown += found.low > 0.0 or found.high < 0.0
    assert shown / studies <= 0.1  # 0.05, give or take three standard errors


def test_all_tests_are_in_one_family_and_the_primary_ones_in_their_own() -> None:
    summary = summarised(simulated(GAINS))
    tests = [row.difference for row in summary.rows if row.difference] + list(summary.pairs)
    assert summary.comparisons == len(tests) == 2 * 3 * 2 + 2 * 3
    assert [test.p_holm for test in tests] == holm([test.p for test in tests])
    assert [verdict.p_primary for verdict in summary.verdicts] == holm(
        [verdict.contrast.p for verdict in summary.verdicts]
    )
