"""A tracking server that asks who is there: used with the environment's credentials, which show nowhere."""

from __future__ import annotations

import contextlib
import io
import secrets
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hssl_dist.config.parts import TrackingConfig
from hssl_dist.console import Console
from hssl_dist.errors import TrackingError
from hssl_dist.records import Lineage
from hssl_dist.tracking import attach_run, fetch_model, set_alias, start_run
from hssl_dist.tracking.history import metric_history
from tests.mlflow_server import USER, MlflowServer
from tests.models import write_placeholder
from tests.security.searching import places

LINEAGE = Lineage(config_hash="c" * 64, code_version="0.1.0")
PASSWORD = f"CANARY{secrets.token_hex(12)}"
TIMEOUT_S = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with MlflowServer(tmp_path_factory.mktemp("tracking") / "server", PASSWORD) as running:
        yield running


@pytest.fixture
def credentials(server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for key, value in server.environment.items():
        monkeypatch.setenv(key, value)
    return monkeypatch


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_placeholder(tmp_path / "model")


def status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S
        ) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_credentials_of_the_environment_are_used_and_left_nowhere(
    server: MlflowServer, credentials: pytest.MonkeyPatch, model: Path
) -> None:
    # The address may name the user and the password as well: then they are cut off wherever it is shown.
    for name, uri in (("plain", server.url), ("own", server.url.replace("//", f"//{USER}:{PASSWORD}@"))):
        tracking = TrackingConfig(uri=uri, experiment="tests")
        params = {"steps": 3, "tracking": {"uri": uri}}
        with start_run(tracking, name, params, {}, LINEAGE) as run:
            attach_run(tracking, run.id).log_metrics(1, {"loss": 2.0})
            run.log_metrics(2, {"loss": 1.0})
            run.log_json("config.json", {"steps": 3})
            version = run.register(str(model), f"{name}-unet", LINEAGE)
        set_alias(tracking, f"{name}-unet", version.version, "champion")
        fetched = fetch_model(tracking, f"models:/{name}-unet@champion")
        assert (fetched.folder / "model.safetensors").read_bytes() == b"weights"
        assert metric_history(tracking, run.id)["loss"][-1] == (2, 1.0)
    assert places([PASSWORD], server.folder) == []
    assert PASSWORD not in server.log.read_text()


def _register(tracking: TrackingConfig, model: Path) -> None:
    with contextlib.closing(attach_run(tracking, "0" * 32)) as run:
        run.register(str(model), "a", LINEAGE)


ACTIONS: dict[str, Callable[[TrackingConfig, Path], object]] = {
    "starting the run 'a'": lambda tracking, model: start_run(tracking, "a", {}, {}, LINEAGE),
    "registering 'a'": lambda tracking, model: _register(tracking, model),
    "fetching 'models:/a@latest'": lambda tracking, model: fetch_model(tracking, "models:/a@latest"),
    f"fetching 'runs:/{'0' * 32}'": lambda tracking, model: fetch_model(tracking, f"runs:/{'0' * 32}"),
    "promoting 'a'": lambda tracking, model: set_alias(tracking, "a", 1, "champion"),
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("password", [None, f"{PASSWORD}x"], ids=["none", "wrong"])
def test_without_them_every_action_is_refused_in_one_line(
    server: MlflowServer,
    credentials: pytest.MonkeyPatch,
    model: Path,
    action: str,
    password: str | None,
) -> None:
    if password is None:
        credentials.delenv("MLFLOW_TRACKING_USERNAME")
        credentials.delenv("MLFLOW_TRACKING_PASSWORD")
    else:
        credentials.setenv("MLFLOW_TRACKING_PASSWORD", password)
    with pytest.raises(TrackingError) as caught:
        ACTIONS[action](TrackingConfig(uri=server.url), model)
    text = str(caught.value)
    assert text.startswith(f"{action} failed at {server.url}: ")
    assert "not authenticated" in text
    verb = "set" if password is None else "check"
    assert text.endswith(f"; {verb} MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
    assert "\n" not in text
    assert PASSWORD not in text


def test_a_run_whose_credentials_expire_goes_on_and_says_so_without_them(
    server: MlflowServer, credentials: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    run = start_run(TrackingConfig(uri=server.url), "expiring", {}, {}, LINEAGE, warn=Console(stream).warn)
    credentials.setenv("MLFLOW_TRACKING_PASSWORD", f"{PASSWORD}x")
    run.log_metrics(1, {"loss": 1.0})
    run.flush()
    assert "not authenticated" in stream.getvalue()
    assert "; check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in stream.getvalue()
    assert PASSWORD not in stream.getvalue()


@pytest.mark.parametrize(
    "path",
    [
        "/api/2.0/mlflow/experiments/search?max_results=1",
        "/api/2.0/mlflow/registered-models/search",
        "/api/2.0/mlflow-artifacts/artifacts",
        "/ajax-api/2.0/mlflow/experiments/search?max_results=1",
        "/get-artifact?path=a&run_uuid=b",
        "/",
    ],
)
def test_no_page_and_no_api_answers_a_stranger(server: MlflowServer, path: str) -> None:
    assert status(f"{server.url}{path}") == 401


def test_a_page_of_another_name_cannot_use_the_server(server: MlflowServer) -> None:
    """DNS rebinding: a browser that a foreign page led here sends that page's name."""
    assert status(f"{server.url}/api/2.0/mlflow/experiments/search?max_results=1", Host="evil.example") == 403
