"""Gains by run are those that a study's own table is the mean of."""

from __future__ import annotations

import csv

import pytest

from benchmarks.study_gains import STUDIES, runs, told


@pytest.mark.parametrize("task", ["acdc", "hippocampus"])
@pytest.mark.parametrize("part", ["validation", "test"])
def test_their_mean_is_the_difference_in_the_table(task: str, part: str) -> None:
    scratch, mixed = (runs("few", part, task, "0.05", arm) for arm in ("scratch", "hssl-multi-mixed"))
    assert scratch.keys() == mixed.keys() == {(seed, subset) for seed in (0, 1) for subset in range(10)}
    with (STUDIES / "few" / part / "table.csv").open() as file:
        (row,) = [
            row for row in csv.DictReader(file) if (row["task"], row["arm"]) == (task, "hssl-multi-mixed")
        ]
    gains = [mixed[run] - scratch[run] for run in scratch]
    assert sum(gains) / len(gains) == pytest.approx(100 * float(row["difference"]), abs=1e-3)


def test_only_runs_that_both_have_are_compared() -> None:
    before = {(0, 0): 60.0, (0, 1): 50.0, (1, 0): 70.0}
    after = {(0, 0): 61.0, (0, 1): 49.0, (1, 1): 99.0}
    assert told(before, after) == [
        "  seed 0: +1.0 -1.0, mean +0.0",
        "  55.0 to 55.0, +0.0: 1 of 2 gain, standard deviation 1.4",
    ]
    assert told(before, {(1, 0): 72.0}) == ["  seed 1: +2.0, mean +2.0", "  70.0 to 72.0, +2.0: 1 of 1 gain"]


def test_an_arm_that_is_not_there_is_told() -> None:
    with pytest.raises(FileNotFoundError, match=r"no cell acdc-f0.05-s\*-r\*-other.json"):
        runs("few", "test", "acdc", "0.05", "other")
