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


@pytest.mark.parametrize(
    ("text", "name", "folder"),
    [
        ("/data/runs/lr=0.1", "lr=0.1", "/data/runs/lr=0.1"),
        ("/data/lr=0.1/out", "out", "/data/lr=0.1/out"),
        ("./lr=0.1", "lr=0.1", "HERE/lr=0.1"),
        ("s3://bucket/lr=0.1/", "lr=0.1", "s3://bucket/lr=0.1"),
        ("ours=/data/runs/lr=0.1", "ours", "/data/runs/lr=0.1"),
        ("ours=s3://bucket/lr=0.1", "ours", "s3://bucket/lr=0.1"),
        ("lr=0.1", "lr", "HERE/0.1"),
        ("=x", "=x", "HERE/=x"),
    ],
)
def test_folders_with_an_equals_sign_survive_further_validations(
    text: str, name: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = _load("--predictions", text, "--labels", "/l")
    monkeypatch.chdir("/")
    for _ in range(2):
        assert config.sets == {name: folder.replace("HERE", str(tmp_path))}
        config = EvaluateConfig.model_validate(config.model_dump())


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
            ("--predictions", "/a/lr=1", "--predictions", "/b/lr=1", "--labels", "/l"),
            "two `predictions` are called 'lr=1'; name them, as in ours=FOLDER",
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


def test_two_values_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        _load("--predictions", "/p", "--labels", "/l", "--classes", '{"1": "x", "2": "y", "7": "x"}')
    assert str(caught.value) == (
        "classes: label values 1 and 7 are both called 'x'; give each a name of its own"
    )
