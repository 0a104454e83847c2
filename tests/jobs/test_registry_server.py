"""Runs and the registry through a real MLflow server: what SQLite alone does not show."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from hssl_dist.config.parts import TrackingConfig
from hssl_dist.errors import MissingError
from hssl_dist.records import Lineage
from hssl_dist.tracking import attach_run, fetch_model, set_alias, start_run
from hssl_dist.tracking.client import connect
from tests.mlflow_server import MlflowServer
from tests.models import write_placeholder

LINEAGE = Lineage(config_hash="c" * 64, code_version="0.1.0", manifests={"heart": "a" * 64})
WEIGHTS, BETTER = b"weights" * 1000, b"better weights" * 1000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A server on loopback that proxies artifacts."""
    with MlflowServer(tmp_path_factory.mktemp("tracking") / "server") as server:
        yield server


@dataclass(frozen=True)
class Served:
    """A finished run of which two versions of a model were registered."""

    tracking: TrackingConfig
    server: MlflowServer
    run_id: str
    uris: tuple[str, str]


@pytest.fixture(scope="module")
def served(server: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A run that is tracked, and its model registered twice, through the server."""
    tracking = server.tracking
    folder = write_placeholder(tmp_path_factory.mktemp("model"), WEIGHTS)
    with start_run(tracking, "served", {"steps": 3}, {}, LINEAGE) as run:
        worker = attach_run(tracking, run.id)
        worker.log_metrics(1, {"loss": 2.0, "val_dice/left ventricle": 0.5})
        worker.log_figure("figures/loss.png", b"png")
        worker.close()
        first = run.register(str(folder), "hssl-unet", LINEAGE, ("champion",))
        second = run.register(str(write_placeholder(folder, BETTER)), "hssl-unet", LINEAGE)
    return Served(tracking, server, run.id, (first.uri, second.uri))


def test_what_a_run_and_its_worker_logged_is_on_the_server(served: Served) -> None:
    client = connect(served.tracking)
    kept = client.get_run(served.run_id)
    assert kept.info.status == "FINISHED"
    assert kept.data.metrics == {"loss": 2.0, "val_dice/left ventricle": 0.5}
    assert kept.data.tags["hssl.manifest.heart"] == "a" * 64
    assert [item.path for item in client.list_artifacts(served.run_id, "figures")] == ["figures/loss.png"]
    assert client.get_model_version("hssl-unet", "2").tags["hssl.config_hash"] == "c" * 64


def test_a_model_comes_back_by_version_alias_and_run(
    served: Served, capfd: pytest.CaptureFixture[str]
) -> None:
    assert served.uris == ("models:/hssl-unet/1", "models:/hssl-unet/2")
    versions = {
        "models:/hssl-unet@latest": 2,
        "models:/hssl-unet@champion": 1,
        "models:/hssl-unet/1": 1,
        f"runs:/{served.run_id}": None,
    }
    for uri, version in versions.items():
        fetched = fetch_model(served.tracking, uri)
        assert fetched.version == version
        assert fetched.run_id == served.run_id
        assert (fetched.folder / "model.safetensors").read_bytes() == (WEIGHTS if version == 1 else BETTER)
    set_alias(served.tracking, "hssl-unet", 2, "champion")
    assert fetch_model(served.tracking, "models:/hssl-unet@champion").version == 2
    set_alias(served.tracking, "hssl-unet", 1, "champion")
    assert capfd.readouterr().out == ""


def test_what_the_registry_has_not_is_named_beside_what_it_has(served: Served) -> None:
    with pytest.raises(MissingError) as caught:
        fetch_model(served.tracking, "models:/hssl-unet@best")
    assert str(caught.value) == (
        f"model 'hssl-unet' in the registry at {served.tracking.uri} has no alias 'best': "
        "it has versions 1, 2, aliases champion, latest"
    )
    with pytest.raises(MissingError, match="no model 'other' in the registry"):
        fetch_model(served.tracking, "models:/other@latest")
    with pytest.raises(MissingError, match=f"no run '{'0' * 32}'"):
        fetch_model(served.tracking, f"runs:/{'0' * 32}")


def test_a_job_goes_on_when_its_server_goes_away(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last test of the file: one warning, no error, and no long wait."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    warnings: list[str] = []
    run = start_run(served.tracking, "orphaned", {}, {}, LINEAGE, warn=warnings.append)
    served.server.stop()
    start_s = time.monotonic()
    for step in range(100):
        run.log_metrics(step, {"loss": 1.0})
    run.finish("done")
    assert time.monotonic() - start_s < 20
    assert warnings == ["tracking failed, the run goes on without it for now: Connection refused"]
