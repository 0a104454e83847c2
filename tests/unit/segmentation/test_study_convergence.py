"""Whether a study's arms have converged, and what it could have seen."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hssl_dist.segmentation.study import StudyResults
from hssl_dist.segmentation.study_convergence import last_quarter_gain, mean_curve
from hssl_dist.segmentation.study_pairs import Group
from hssl_dist.segmentation.study_power import complete_block, power_of
from tests.study_cells import GAINS, cell, row_of, simulated, summarised


def test_the_last_quarters_gain_is_that_of_its_line() -> None:
    line = [(step, 0.5 + 0.0002 * step) for step in range(0, 1001, 50)]
    assert last_quarter_gain(line) == pytest.approx(0.0002 * 250)
    assert last_quarter_gain([(step, 0.7) for step in range(0, 1001, 50)]) == pytest.approx(0.0, abs=1e-12)
    points = [(0, 0.0), (75, 0.5), (90, 0.8), (100, 0.7)]
    slope = np.polyfit([75, 90, 100], [0.5, 0.8, 0.7], 1)[0]
    assert last_quarter_gain(points) == pytest.approx(slope * 25)
    assert math.isnan(last_quarter_gain([(0, 0.1), (100, 0.5)]))
    assert math.isnan(last_quarter_gain([]))


@pytest.mark.parametrize(
    ("steps", "every", "known"), [(600, 50, True), (600, 150, True), (600, 200, False), (600, 300, False)]
)
def test_a_quarter_of_the_steps_between_validations_is_close_enough_to_tell(
    steps: int, every: int, known: bool
) -> None:
    curve = tuple((step, 0.5 + 0.001 * step) for step in range(every, steps + 1, every))
    assert last_quarter_gain(curve) == pytest.approx(0.15 if known else math.nan, nan_ok=True)
    (found,) = summarised([cell(curve=curve)]).convergence
    assert found.converged is (False if known else None)


def test_the_mean_curve_is_over_the_steps_all_have() -> None:
    found = dict(mean_curve([[(10, 0.2), (20, 0.4), (30, 0.9)], [(10, 0.4), (20, 0.6)]]))
    assert found == pytest.approx({10: 0.3, 20: 0.5})
    assert mean_curve([]) == ()


def test_converged_needs_the_intervals_upper_end_below_a_point() -> None:
    def still_rising(per_step: float, spread: float) -> StudyResults:
        cells = [
            cell(
                subset=subset,
                curve=tuple(
                    (step, 0.5 + (per_step + spread * (subset - 2)) * step) for step in range(0, 401, 20)
                ),
            )
            for subset in range(5)
        ]
        return summarised(cells)

    (flat,) = still_rising(0.00002, 0.000001).convergence
    assert flat.gain.value == pytest.approx(0.002)
    assert (flat.converged, flat.runs, flat.best_step) == (True, 5, 30)
    (rising,) = still_rising(0.0002, 0.000001).convergence
    assert rising.converged is False
    (unsure,) = still_rising(0.00008, 0.00005).convergence
    assert unsure.gain.value < 0.01 < unsure.gain.high
    assert unsure.converged is False
    (one,) = summarised([cell()]).convergence
    assert (one.gain.value, one.converged) == (pytest.approx(0.0, abs=1e-12), True)
    (none,) = summarised([cell(curve=((40, 0.5),))]).convergence
    assert (none.gain, none.converged) == (None, None)


def test_power_of_a_simulated_study_and_of_one_with_a_single_subset() -> None:
    summary = summarised(simulated(GAINS, tasks=("hippocampus",)))
    power = row_of(summary, Group("hippocampus", 0.05, "multi")).power
    assert power.sizes == {"subset": 5, "seed": 2, "patient": 20}
    assert power.unseen == ()
    assert 0.05 < power.power <= 1.0
    # Each arm's runs vary by 0.004, its patients by 0.012 and more: the difference's error is about 0.0022.
    assert power.standard_error == pytest.approx(0.0022, rel=0.5)
    every = row_of(summary, Group("hippocampus", 1.0, "multi")).power
    assert every.unseen == ("subset",)
    assert set(every.needed) == {"seed", "patient"}


def test_the_complete_block_leaves_out_whole_units() -> None:
    table = {(str(a), str(b), str(c)): 1.0 for a in range(4) for b in range(2) for c in range(5)}
    assert complete_block(table) == (table, {"subset": 0, "seed": 0, "patient": 0})
    gap = {key: value for key, value in table.items() if key[:2] != ("2", "1")}
    left, dropped = complete_block(gap)
    assert dropped == {"subset": 1, "seed": 0, "patient": 0}
    assert {key[0] for key in left} == {"0", "1", "3"}
    lone = {key: value for key, value in table.items() if key[2] != "4" or key[:2] == ("0", "0")}
    assert complete_block(lone)[1] == {"subset": 0, "seed": 0, "patient": 1}
    crossed = {("0", "0", "a"): 0.1, ("0", "1", "b"): 0.2}  # one subset; each seed has another patient
    left, dropped = complete_block(crossed)
    assert (len(left), dropped["subset"]) == (1, 0)
    assert power_of(crossed, 0.01, 0.95) is not None
    assert power_of({}, 0.01, 0.95) is None
