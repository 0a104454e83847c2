"""What tells a pretraining run from another: a split file counts by what it says, not by where it lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hssl_dist.config.parts import SplitConfig
from hssl_dist.config.pretrain import PretrainConfig, SamplingConfig
from hssl_dist.errors import ConfigError
from hssl_dist.sampling.schedule import DRAWS_VERSION
from hssl_dist.training.trajectory import check_same, trajectory, trajectory_hash


def test_a_split_file_counts_by_its_content(tmp_path: Path) -> None:
    def hashed(name: str, content: str) -> str:
        (tmp_path / name).write_text(content)
        split = SplitConfig(file=str(tmp_path / name))
        return trajectory_hash(PretrainConfig(sampling=SamplingConfig(exclude_test=split)), {})

    first = hashed("one.json", '{"test": ["p1"]}')
    assert hashed("two.json", '{"test": ["p1"]}') == first
    assert hashed("one.json", '{"test": ["p2"]}') != first


def test_a_split_without_a_file_has_the_hash_it_always_had() -> None:
    plain = PretrainConfig(sampling=SamplingConfig(exclude_test=SplitConfig(test=0.3)))
    assert trajectory_hash(plain, {}) == trajectory_hash(plain.model_copy(update={"name": "other"}), {})


def test_datasets_whose_test_patients_are_left_out_tell_runs_apart_if_there_are_any() -> None:
    def sampling(**changes: Any) -> dict[str, Any]:
        config = PretrainConfig(
            sampling=SamplingConfig(datasets=("b",), exclude_test=SplitConfig(), **changes)
        )
        part: dict[str, Any] = trajectory(config, {})["sampling"]
        return part

    assert sampling(exclude_test_of=("a",))["exclude_test_of"] == ["a"]
    # As runs of before the key were saved: the manifests tell these apart.
    assert sampling() == sampling(exclude_test_of=())
    assert "exclude_test_of" not in sampling()


def test_weights_of_tasks_tell_runs_apart_if_there_are_any() -> None:
    def sampling(weights: dict[str, float]) -> dict[str, Any]:
        part: dict[str, Any] = trajectory(PretrainConfig(sampling=SamplingConfig(task_weights=weights)), {})[
            "sampling"
        ]
        return part

    assert sampling({"heart": 2.0})["task_weights"] == {"heart": 2.0}
    assert "task_weights" not in sampling({})  # as runs of before the key were saved


def test_precision_and_the_way_regions_are_drawn_tell_runs_apart() -> None:
    one = trajectory(PretrainConfig(), {})
    other = trajectory(PretrainConfig(precision="bfloat16"), {})
    assert one["draws"] == other["draws"] == DRAWS_VERSION
    with pytest.raises(ConfigError, match="precision = float32, it is now bfloat16"):
        check_same("run", one, other)
    with pytest.raises(ConfigError, match="draws = nothing, it is now"):
        check_same("run", {key: value for key, value in one.items() if key != "draws"}, one)


def test_what_changes_rounding_alone_does_not() -> None:
    faster = {"compile": True, "recompute_stages": 2, "channels_last": True, "bucket_mb": 1.0}
    other = PretrainConfig.model_validate({"micro_batch": 4, "acceleration": faster})
    assert trajectory(other, {}) == trajectory(PretrainConfig(), {})
