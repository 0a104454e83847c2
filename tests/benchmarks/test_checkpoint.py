"""The benchmark of checkpoints runs a real pretraining and adds up."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.checkpoint import BOUND, INTERVAL, Size, measure, table
from tests.tiny_network import NETWORK


def test_what_a_checkpoint_costs_is_measured_in_both_stages(tmp_path: Path) -> None:
    size = Size(steps=6, between=2, global_batch=2, patch_size=(4, 8, 8), network=NETWORK)
    result = measure(tmp_path, size, rounds=1)
    assert set(result["stages"]) == {"encoder", "decoder"}
    for figures in result["stages"].values():
        value = {key: row["median"] for key, row in figures.items()}
        assert value["share"] == pytest.approx(value["cost_ms"] / (INTERVAL * value["step_ms"]), abs=1e-4)
        assert 0 < value["copy_ms"] < value["write_ms"]
        assert value["size_mib"] > 0.01
    assert result["passed"] == (result["share"] <= BOUND)
    assert "of 100 steps" in table(result)
