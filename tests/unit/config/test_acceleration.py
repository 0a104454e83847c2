"""Settings of a step: where they stand, what they refuse, and that they make nothing another run."""

from __future__ import annotations

import pytest

from hssl_dist.config.finetune import FinetuneConfig
from hssl_dist.config.loading import load_config
from hssl_dist.config.pretrain import PretrainConfig
from hssl_dist.errors import ConfigError


def pretraining(*words: str) -> PretrainConfig:
    return load_config(PretrainConfig, "hssl pretrain", words)


def test_defaults_are_those_of_docs_speed() -> None:
    assert pretraining().acceleration.model_dump() == {
        "compile": False,
        "recompute_stages": 0,
        "channels_last": False,
        "fused_optimiser": True,
        "keep_freed_memory": True,
        "bucket_mb": 25.0,
        "bucket_views": True,
    }


def test_they_are_flags() -> None:
    config = pretraining("--acceleration.compile", "true", "--acceleration.bucket_mb", "4")
    assert (config.acceleration.compile, config.acceleration.bucket_mb) == (True, 4.0)


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("bucket_mb", "0", "acceleration.bucket_mb: input should be greater than 0"),
        (
            "recompute_stages",
            "-1",
            "acceleration.recompute_stages: input should be greater than or equal to 0",
        ),
    ],
)
def test_what_means_nothing_is_refused(flag: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pretraining(f"--acceleration.{flag}", value)


def test_fine_tuning_has_those_of_one_process() -> None:
    words = ("--dataset", "heart", "--training.acceleration.recompute_stages", "2")
    config = load_config(FinetuneConfig, "hssl finetune", words)
    assert config.training.acceleration.recompute_stages == 2
    assert "bucket_mb" not in config.training.acceleration.model_dump()
