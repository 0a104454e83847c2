"""Where a config's values come from, and what is said when they are wrong."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from hssl_dist.config.demo import DemoConfig
from hssl_dist.config.evaluate import EvaluateConfig
from hssl_dist.config.finetune import FinetuneConfig, PromoteConfig
from hssl_dist.config.loading import load_config
from hssl_dist.config.parts import JobConfig
from hssl_dist.config.preprocess import PreprocessConfig
from hssl_dist.config.pretrain import PretrainConfig
from hssl_dist.config.study import StudyConfig
from hssl_dist.errors import ConfigError, MissingError

SCHEMAS: dict[str, type[JobConfig]] = {
    "preprocess": PreprocessConfig,
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "evaluate": EvaluateConfig,
    "promote": PromoteConfig,
    "study": StudyConfig,
    "demo": DemoConfig,
}
SHIPPED = sorted((Path(__file__).parents[3] / "configs").rglob("*.yaml"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("workers: 3\nseed: 3\nglobal_batch: 24\nstore:\n  url: /from-file\n")
    return path


def load(*words: str) -> PretrainConfig:
    return load_config(PretrainConfig, "hssl pretrain", words)


def test_flags_win_over_environment_over_file_over_default(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HSSL_WORKERS", "4")
    monkeypatch.setenv("HSSL_STORE__URL", "/from-environment")
    config = load("--config", str(file), "--workers", "5")
    assert config.workers == (5, 5)
    assert config.store.url == "/from-environment"
    assert config.seed == 3
    assert config.log_every_steps == PretrainConfig().log_every_steps


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        (
            ("--surface_dice.class_tolerance_mm", "{liver: 7}"),
            {},
            "--surface_dice.class_tolerance_mm cannot be read; write it as JSON in single quotes: "
            "--surface_dice.class_tolerance_mm '{\"key\": value}', text in double ones",
        ),
        (
            ("--classes", "1:x"),
            {},
            "--classes cannot be read; write it as JSON in single quotes: --classes '{\"key\": value}', text "
            "in double ones",
        ),
        (
            ("--predictions", "[a"),
            {},
            "--predictions cannot be read; write it as JSON in single quotes: --predictions '[value, value]'"
            ", text in double ones",
        ),
        (
            (),
            {"HSSL_CLASSES": "{'1': 'x'}"},
            "HSSL_CLASSES cannot be read; write it as JSON in single quotes: HSSL_CLASSES '{\"key\": value}'"
            ", text in double ones",
        ),
    ],
)
def test_a_list_or_mapping_that_cannot_be_parsed_names_its_flag_and_the_form(
    words: tuple[str, ...], environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        load_config(EvaluateConfig, "hssl evaluate", words)
    assert str(caught.value) == message


def test_a_part_given_in_part_keeps_its_other_defaults(tmp_path: Path) -> None:
    (tmp_path / "part.yaml").write_text("decoder: {steps: 7}\n")
    config = load("--config", str(tmp_path / "part.yaml"), "--encoder.warmup_steps", "3")
    assert config.decoder == PretrainConfig().decoder.model_copy(update={"steps": 7})
    assert config.encoder == PretrainConfig().encoder.model_copy(update={"warmup_steps": 3})


def test_a_loaded_config_is_the_plain_schema_and_frozen(file: Path) -> None:
    config = load("--config", str(file))
    assert type(config) is PretrainConfig
    with pytest.raises(ValidationError, match="frozen"):
        config.workers = 2  # type: ignore[misc]
    assert PretrainConfig.model_validate(config.model_dump()) == config


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load("--store.url", "here/store", "--tracking.uri", "sqlite:///here/mlflow.db")
    assert config.store.url == str(tmp_path / "here/store")
    assert config.tracking.uri == f"sqlite:///{tmp_path}/here/mlflow.db"
    assert load("--store.url", "file:///x/y").store.url == "/x/y"
    assert load("--store.url", "s3://bucket/prefix/").store.url == "s3://bucket/prefix"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wrokers: 2", "wrokers: unknown key; did you mean workers?"),
        ("encoder: {step: 2}", "encoder.step: unknown key; did you mean steps?"),
        ("store: {zzz: 2}", "store.zzz: unknown key; known are url"),
        ("sampling: {patch_size: [16, 30, 32]}", "is not a multiple of the network's reduction"),
        ("- a\n- b", "holds a list, expected `key: value` lines"),
        ("a: [", "is not valid YAML: "),
    ],
)
def test_errors_say_where_and_what(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load("--config", str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file() -> None:
    with pytest.raises(MissingError, match=r"config file nowhere\.yaml cannot be read"):
        load("--config", "nowhere.yaml")


def test_hash_ignores_what_is_excluded_and_nothing_else() -> None:
    one, other = load("--seed", "1"), load("--seed", "2")
    assert one.hash() != other.hash()
    assert one.hash(exclude={"seed"}) == other.hash(exclude={"seed"})


def test_configs_are_shipped_for_every_job_that_needs_one() -> None:
    assert {path.parent.name for path in SHIPPED} >= {"preprocess", "pretrain", "finetune"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_shipped_config_loads(path: Path) -> None:
    load_config(SCHEMAS[path.parent.name], "hssl", ["--config", str(path)])


@pytest.mark.parametrize("name", ["real-hippocampus", "real-acdc"])
def test_scratch_has_the_network_that_is_pretrained(name: str) -> None:
    configs = SHIPPED[0].parents[1]
    pretrained = load("--config", str(configs / "pretrain" / "real.yaml"))
    tuned = load_config(FinetuneConfig, "hssl", ["--config", str(configs / "finetune" / f"{name}.yaml")])
    assert tuned.network == pretrained.network
