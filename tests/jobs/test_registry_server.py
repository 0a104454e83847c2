"""Runs and the registry through a real MLflow server: what SQLite alone does not show."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hssl_dist.config.parts import TrackingConfig
from hssl_dist.errors import MissingError
from hssl_dist.records import Lineage
from hssl_dist.tracking import attach_run, fetch_model, register_model, set_alias, start_run
from hssl_dist.tracking.client import connect

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
LINEAGE = Lineage(config_hash="c" * 64, code_version="0.1.0", manifests={"heart": "a" * 64})
WEIGHTS = b"weights" * 1000


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"the MLflow server did not start: {log.read_text()[-2000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and its worker, which are a process group of their own, if it has not ended yet."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_TIMEOUT_S)


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[TrackingConfig, subprocess.Popen[bytes]]]:
    """A server on loopback that proxies artifacts, and its process."""
    folder = tmp_path_factory.mktemp("server")
    port = _free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", "1", "--allowed-hosts", "127.0.0.1:*"),
        *("--backend-store-uri", f"sqlite:///{folder}/server.db"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    log = folder / "server.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, cwd=folder, env=environment, start_new_session=True
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_healthy(process, url, log)
            yield TrackingConfig(uri=url, experiment="tests"), process
        finally:
            _stop(process)


@dataclass(frozen=True)
class Served:
    """A finished run of which two versions of a model were registered."""

    tracking: TrackingConfig
    process: subprocess.Popen[bytes]
    run_id: str
    uris: tuple[str, str]


@pytest.fixture(scope="module")
def served(
    server: tuple[TrackingConfig, subprocess.Popen[bytes]], tmp_path_factory: pytest.TempPathFactory
) -> Served:
    """A run that is tracked, and its model registered twice, through the server."""
    tracking, process = server
    folder = tmp_path_factory.mktemp("model")
    (folder / "model.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    with start_run(tracking, "served", {"steps": 3}, {}, LINEAGE) as run:
        worker = attach_run(tracking, run.id)
        worker.log_metrics(1, {"loss": 2.0, "val_dice/left ventricle": 0.5})
        worker.log_figure("figures/loss.png", b"png")
        worker.flush()
        first = register_model(tracking, folder, "hssl-unet", run.id, LINEAGE, alias="champion")
        second = register_model(tracking, folder, "hssl-unet", run.id, LINEAGE)
    return Served(tracking, process, run.id, (first.uri, second.uri))


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
        assert (fetched.folder / "model.safetensors").read_bytes() == WEIGHTS
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
    _stop(served.process)
    start_s = time.monotonic()
    for step in range(100):
        run.log_metrics(step, {"loss": 1.0})
    run.finish("done")
    assert time.monotonic() - start_s < 20
    assert warnings == ["tracking failed, the run goes on without it for now: Connection refused"]
