"""The keys of fine-tuning that are more than one value, as flags and in a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from hssl_dist.config.finetune import AugmentationConfig, FinetuneConfig
from hssl_dist.config.loading import load_config
from hssl_dist.errors import ConfigError


def load(*words: str) -> FinetuneConfig:
    return load_config(FinetuneConfig, "hssl finetune", ("--dataset", "heart", *words))


def test_augmentation_given_in_part_keeps_its_other_defaults(tmp_path: Path) -> None:
    (tmp_path / "axes.yaml").write_text("training: {augmentation: {flip_axes: [false, false, true]}}\n")
    config = load("--config", str(tmp_path / "axes.yaml"), "--training.augmentation.flip", "0.2")
    assert config.training.augmentation == AugmentationConfig(flip=0.2, flip_axes=(False, False, True))


def test_aliases_and_folds_are_flags_too() -> None:
    config = load("--alias", "champion", "--alias", "hssl-5", "--split.folds", "5", "--split.fold", "2")
    assert config.alias == ("champion", "hssl-5")
    assert (config.split.folds, config.split.fold, config.split.fold_part) == (5, 2, "test")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "heads",
            "parts.0: 'heads' is not taken from models; encoder and decoder are, heads are always new",
        ),
        ("[]", "parts: tuple should have at least 1 item after validation, not 0, found []"),
    ],
)
def test_parts_are_some_of_those_a_model_has(value: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load("--parts", value)
    assert str(caught.value) == message
    assert load("--parts", "decoder").parts == ("decoder",)


def test_what_is_off_by_default_is_off() -> None:
    training = load().training
    assert (training.patience, training.ema_decay, training.freeze_steps) == (None, None, 0)
    assert (training.layer_decay, training.precision) == (1.0, "float32")
