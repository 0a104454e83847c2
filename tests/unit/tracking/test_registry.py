from pathlib import Path

import pytest

from hssl_dist.config.parts import TrackingConfig
from hssl_dist.errors import CheckpointError, ConfigError, MissingError
from hssl_dist.records import Lineage
from hssl_dist.tracking import fetch_model, set_alias, start_run
from hssl_dist.tracking.client import connect
from tests.models import write_placeholder

LINEAGE = Lineage(config_hash="c" * 64, code_version="0.1.0", parent_run="p" * 32)


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    return TrackingConfig(uri=f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_placeholder(tmp_path / "model")


def _register(tracking: TrackingConfig, model: Path, name: str, *aliases: str):
    with start_run(tracking, f"make-{name}", {}, {}, LINEAGE) as run:
        return run.id, run.register(str(model), name, LINEAGE, aliases)


def test_version_is_fetched_by_number_alias_latest_and_run(tracking: TrackingConfig, model: Path):
    first_run, first = _register(tracking, model, "unet", "champion")
    (model / "model.safetensors").write_bytes(b"better weights")
    second_run, second = _register(tracking, model, "unet")
    assert (first.uri, second.uri) == ("models:/unet/1", "models:/unet/2")

    expected = {
        "models:/unet/1": (b"weights", 1, first_run),
        "models:/unet@champion": (b"weights", 1, first_run),
        "models:/unet@latest": (b"better weights", 2, second_run),
        "models:/unet/latest": (b"better weights", 2, second_run),
    }
    for uri, (weights, version, run_id) in expected.items():
        fetched = fetch_model(tracking, uri)
        assert (fetched.folder / "model.safetensors").read_bytes() == weights
        assert (fetched.uri, fetched.name, fetched.version, fetched.run_id) == (
            f"models:/unet/{version}",
            "unet",
            version,
            run_id,
        )
    by_run = fetch_model(tracking, f"runs:/{first_run}")
    assert (by_run.folder / "model.safetensors").read_bytes() == b"weights"
    assert (by_run.uri, by_run.name, by_run.run_id) == (f"runs:/{first_run}", None, first_run)


def test_version_carries_its_lineage(tracking: TrackingConfig, model: Path):
    run_id, version = _register(tracking, model, "traced")
    kept = connect(tracking).get_model_version("traced", str(version.version))
    assert kept.run_id == run_id
    assert len(kept.tags.pop("hssl.publication")) == 32
    assert kept.tags == {
        "hssl.run_id": run_id,
        "hssl.config_hash": "c" * 64,
        "hssl.code_version": "0.1.0",
        "hssl.parent_run": "p" * 32,
    }


def test_promote_moves_the_alias(tracking: TrackingConfig, model: Path):
    _register(tracking, model, "promoted")
    _register(tracking, model, "promoted")
    assert set_alias(tracking, "promoted", 1, "champion").version == 1
    assert fetch_model(tracking, "models:/promoted@champion").version == 1
    assert set_alias(tracking, "promoted", None, "champion").version == 2
    assert fetch_model(tracking, "models:/promoted@champion").version == 2
    with pytest.raises(ConfigError, match="'latest' always names the newest version"):
        set_alias(tracking, "promoted", 1, "latest")


def test_downloaded_files_go_with_the_record(tracking: TrackingConfig, model: Path):
    _register(tracking, model, "kept")
    fetched = fetch_model(tracking, "models:/kept@latest")
    folder = fetched.folder
    assert folder.is_dir()
    del fetched
    assert not folder.exists()


def test_folder_is_taken_as_it_is(tracking: TrackingConfig, model: Path, tmp_path: Path):
    fetched = fetch_model(tracking, str(model))
    assert (fetched.folder, fetched.uri, fetched.run_id) == (model, str(model), None)
    with pytest.raises(MissingError) as caught:
        fetch_model(tracking, str(tmp_path))
    assert str(caught.value) == (
        f"no model at {tmp_path}: there is no model.json; "
        "give a model's folder, models:/name@alias, models:/name/version or runs:/id"
    )


def test_remote_folder_is_fetched_without_foreign_files(tracking: TrackingConfig, model: Path):
    import fsspec

    fs = fsspec.filesystem("memory")
    for path in model.iterdir():
        fs.pipe_file(f"/remote-model/{path.name}", path.read_bytes())
    fs.pipe_file("/remote-model/model.pkl", b"never")
    fetched = fetch_model(tracking, "memory://remote-model")
    assert sorted(path.name for path in fetched.folder.iterdir()) == ["model.json", "model.safetensors"]
    assert (fetched.folder / "model.safetensors").read_bytes() == b"weights"


def test_what_is_missing_is_told_with_what_there_is(tracking: TrackingConfig, model: Path, tmp_path: Path):
    _register(tracking, model, "known", "champion")
    where = f"in the registry at {tracking.uri}"
    expected = {
        "models:/known/7": (
            f"model 'known' {where} has no version 7: it has versions 1, aliases champion, latest"
        ),
        "models:/known@best": (
            f"model 'known' {where} has no alias 'best': it has versions 1, aliases champion, latest"
        ),
    }
    for uri, message in expected.items():
        with pytest.raises(MissingError) as caught:
            fetch_model(tracking, uri)
        assert str(caught.value) == message
    with pytest.raises(MissingError, match=r"no model 'unknown' in the registry at .*: it has .*known"):
        fetch_model(tracking, "models:/unknown@latest")
    with pytest.raises(MissingError, match=f"no run '{'0' * 32}' at sqlite"):
        fetch_model(tracking, f"runs:/{'0' * 32}")
    with pytest.raises(ConfigError, match=r"'models:/known' names no version"):
        fetch_model(tracking, "models:/known")
    empty = TrackingConfig(uri=f"sqlite:///{tmp_path}/empty.db")
    with pytest.raises(MissingError) as caught:
        fetch_model(empty, "models:/hssl-unet@latest")
    assert str(caught.value) == (
        f"no model 'hssl-unet' in the registry at {empty.uri}: it has none; "
        "run `hssl pretrain` or `hssl finetune` first"
    )


def test_run_without_a_model_is_told(tracking: TrackingConfig):
    run = start_run(tracking, "bare", {}, {}, LINEAGE)
    with pytest.raises(MissingError, match=f"run {run.id} has registered no model"):
        fetch_model(tracking, f"runs:/{run.id}")


def test_pickles_are_not_registered(tracking: TrackingConfig, model: Path):
    (model / "model.pkl").write_bytes(b"code")
    with pytest.raises(CheckpointError, match=r"model\.pkl is neither safetensors nor JSON"):
        _register(tracking, model, "unet")
    with pytest.raises(MissingError, match=r"no model at .*none: there is no model\.json"):
        _register(tracking, model / "none", "unet")
