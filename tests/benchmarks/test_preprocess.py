"""The benchmark of preprocessing runs, and its arms agree."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.preprocess import ROOT


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_quick_trial_finds_equal_results_in_fewer_bytes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.preprocess", "--quick", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["chain"]) == 2
    for row in result["chain"].values():
        assert row["max_error_std"] <= 1e-3
    (own,) = [row for name, row in result["chain"].items() if name.endswith("own grid")]
    assert own["other_label_share"] == 0.0
    (row,) = result["resampling"].values()
    assert row["label_dice"] > 0.97
    (size,) = result["sizes"].values()
    assert size["ratio"] <= 0.7
    assert size["max_error_std"] <= 1e-3
