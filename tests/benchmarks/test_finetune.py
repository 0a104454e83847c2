"""The benchmarks of fine-tuning run on a store of blobs, by the parts that fine-tuning itself uses."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmarks.finetune_step import PIECES, profile
from benchmarks.weight_averages import measure
from hssl_dist.config.finetune import FinetuneConfig
from tests.tiny_network import NETWORK
from tests.tiny_store import write_blobs


@pytest.fixture
def config(tmp_path: Path) -> FinetuneConfig:
    write_blobs(str(tmp_path / "store"))
    return FinetuneConfig.model_validate(
        {
            "dataset": "blobs",
            "model": "scratch",
            "store": {"url": str(tmp_path / "store")},
            "cache": {"max_bytes": 0},
            "split": {"test": 0.25, "validation": 0.25},
            "training": {"steps": 4, "patch_size": (4, 8, 8), "validate_every": 2},
            "network": NETWORK,
        }
    )


def test_every_piece_of_a_step_is_timed(config: FinetuneConfig, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    result = profile(str(tmp_path / "config.yaml"), config.store.url, 2, ["--training.precision", "bfloat16"])
    assert set(result["milliseconds"]) == set(PIECES)
    assert result["precision"] == "bfloat16"
    assert result["step"] == pytest.approx(sum(result["milliseconds"].values()), abs=0.2)
    assert 0.0 < result["waste"] < 1.0


def test_averages_are_scored_beside_the_weights(config: FinetuneConfig) -> None:
    result = measure(config, fraction=0.5, seed=1, decays=(0.0, 0.9))
    assert (result["cases"], len(result["each"])) in {(2, 2), (3, 2)}  # p0 has two cases
    for scores in result["each"]:
        assert scores["0.0"] == scores["0"]  # an average that forgets at once
    assert set(result["best"]) == {"0", "0.0", "0.9"}
