"""The two inputs of an evaluation, and what cannot be combined."""

from __future__ import annotations

from pathlib import Path

import pytest

from hssl_dist.config.evaluate import EvaluateConfig
from hssl_dist.config.loading import load_config
from hssl_dist.errors import ConfigError


def _load(*words: str) -> EvaluateConfig:
    return load_config(EvaluateConfig, "hssl evaluate", words)


def test_sets_of_predictions_have_the_name_given_or_their_folders() -> None:
    config = _load("--predictions", "ours=/a/x=1/b", "--predictions", "/c/theirs", "--labels", "/l")
    assert config.sets == {"ours": "/a/x=1/b", "theirs": "/c/theirs"}
    assert EvaluateConfig.model_validate(config.model_dump()) == config


def test_folders_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = _load("--predictions", "us=pred", "--labels", "true")
    assert (config.sets, config.labels) == ({"us": str(tmp_path / "pred")}, str(tmp_path / "true"))


def test_tolerances_by_class_and_in_general() -> None:
    words = ("--surface_dice.tolerance_mm", "2", "--surface_dice.class_tolerance_mm", '{"liver": 7}')
    config = _load("--model", "models:/m/1", *words)
    assert config.surface_dice.model_dump() == {"tolerance_mm": 2.0, "class_tolerance_mm": {"liver": 7.0}}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give either `model`, or `predictions` and `labels`"),
        (
            ("--model", "runs:/1", "--predictions", "/p", "--labels", "/l"),
            "give either `model`, or `predictions` and `labels`",
        ),
        (("--predictions", "/p"), "`predictions` need the true `labels` beside them; give their folder"),
        (
            ("--model", "runs:/1", "--labels", "/l"),
            "`labels` goes with `predictions`; with a model, the store has it",
        ),
        (
            ("--predictions", "/a/p", "--predictions", "/b/p", "--labels", "/l"),
            "two `predictions` are called 'p'; name them, as in ours=FOLDER",
        ),
        (
            ("--predictions", "/p", "--labels", "/l", "--patient_pattern", "x"),
            "the pattern 'x' needs exactly one group: the patient's name",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _load(*words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
