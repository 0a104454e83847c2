"""The benchmark of preprocessing: its arms agree, and its verdicts and tables follow from its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

import pytest

from benchmarks.preprocess_criteria import judge
from benchmarks.preprocess_table import PAGE, RECORD, page_with, tables
from benchmarks.preprocess_volumes import ROOT


def figures(ratio=2.4, error=4e-4, size=0.6, peak=900_000_000, scaling=1.8):
    """What a run measures, as far as it is judged."""
    return {
        "chain": {"a, linear": {"equivalent": {"ratio": ratio, "max_error_std": error}}},
        "sizes": {"a": {"ratio": size, "max_error_std": error}},
        "memory": {"raw_bytes": 200_000_000, "peak_bytes": {"store": peak}},
        "scaling": {"a": {"ratio": scaling}},
    }


def missed(record, quick=False):
    return [criterion.name for criterion in judge(record, quick) if criterion.passed is False]


@pytest.mark.parametrize(
    ("worse", "names"),
    [
        ({}, []),
        ({"ratio": 1.9}, ["speed over MONAI's: a, linear"]),
        ({"size": 0.71}, ["bytes over nnU-Net's: a"]),
        ({"scaling": 1.6}, ["two CPUs over one: a"]),
        ({"peak": 1_101_000_000}, ["peak memory of a worker over 4 raw volumes and 300 MB: store"]),
        (
            {"error": 2e-3},
            [
                "largest difference from MONAI's values, standard deviations",
                "largest error of what is stored, standard deviations",
            ],
        ),
    ],
)
def test_what_is_missed_is_named(worse, names):
    assert missed(figures(**worse)) == names


def test_a_quick_run_judges_neither_speed_nor_memory():
    assert missed(figures(ratio=0.1, peak=9e9, scaling=0.1), quick=True) == []
    assert missed(figures(size=0.9), quick=True) == ["bytes over nnU-Net's: a"]


@pytest.mark.skipif(not RECORD.exists(), reason=f"no record at {RECORD}")
def test_the_page_shows_the_record():
    record = json.loads(RECORD.read_text())
    assert [asdict(criterion) for criterion in judge(record, quick=False)] == record["criteria"]
    assert page_with(PAGE.read_text(), record) == PAGE.read_text()


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_quick_trial_finds_equal_results_in_fewer_bytes():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.preprocess", "--quick", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert len(record["chain"]) == 2
    for row in record["chain"].values():
        for which in ("equivalent", "spared"):
            assert row[which]["max_error_std"] <= 1e-3
            assert row[which]["ratio"] > 0
        assert row["equivalent"]["other_label_share"] <= 0.02
    (own,) = [row for name, row in record["chain"].items() if name.endswith("own grid")]
    assert own["equivalent"]["other_label_share"] == own["spared"]["other_label_share"] == 0.0
    (row,) = record["resampling"].values()
    assert row["label_dice"] > 0.97
    (size,) = record["sizes"].values()
    assert size["ratio"] <= 0.7
    assert size["max_error_std"] <= 1e-3
    assert record["memory"]["peak_bytes"].keys() == {"survey", "store"}
    for criterion in record["criteria"]:
        assert f"| {criterion['name']} |" in tables(record)
