"""What tests of all folders share: servers, a browser, caches of their own, and how examples are found."""

from __future__ import annotations

import io
import secrets
import sys
import tempfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests import browser
from tests.s3.server import S3Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The same examples in every run, and no verdict on how busy the machine is.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)
settings.load_profile("repeatable")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever uses the S3 server bears the marker `s3`; where several processes test, who goes with whom.

    A file's tests stay together, for they share what is made once for them; so do all files that use the
    cluster, of which there shall be one.
    """
    fixtures = [(item, getattr(item, "fixturenames", ())) for item in items]
    on_ray = {item.path for item, names in fixtures if "ray_cluster" in names}
    for item, names in fixtures:
        if "s3_server" in names:
            item.add_marker("s3")
        item.add_marker(pytest.mark.xdist_group("ray" if item.path in on_ray else str(item.path)))


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches of decoded volumes are the session's own, never the user's; child processes inherit that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        yield


@pytest.fixture
def temporary_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this process puts temporary files during a test; no other test looks or writes there."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The session's S3 server; it sets no variables. Give `s3_server.environment` to processes you start."""
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server, and its variables in this process's environment for the time of a test."""
    for key, value in s3_server.environment.items():
        monkeypatch.setenv(key, value)
    _forget_clients()
    yield s3_server
    _forget_clients()


@pytest.fixture
def s3_bucket(s3_environment: S3Server) -> str:
    """The URL of a bucket of the test's own, `s3://name`; the environment leads to it."""
    name = f"test-{secrets.token_hex(6)}"
    s3_environment.client().create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local cluster with four logical CPUs: enough for two training workers and their controller.

    Jobs run inside it use it, since this process is already connected.
    """
    from hssl_dist.config.parts import RayConfig
    from hssl_dist.console import Console
    from hssl_dist.jobs import cluster

    with cluster.connect(RayConfig(num_cpus=4), Console(io.StringIO())):
        yield


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    """The session's browser."""
    if browser.EXECUTABLE is None:
        pytest.skip(browser.MISSING)
    with browser.Browser(tmp_path_factory.mktemp("chromium")) as running:
        yield running


def _forget_clients() -> None:
    """fsspec keeps clients that were made with an earlier test's variables."""
    if "s3fs" in sys.modules:
        sys.modules["s3fs"].S3FileSystem.clear_instance_cache()
