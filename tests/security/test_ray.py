"""A local cluster as a job starts it: what it listens to, who is let in, and where its token is left."""

from __future__ import annotations

import http.client
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.security.local_cluster import ON_LOOPBACK, LocalCluster, local_cluster, without_ray
from tests.security.searching import places

JOIN_TIMEOUT_S = 240
KNOCK_TIMEOUT_S = 20
METRICS = b"# HELP"

JOIN = """
import sys
import ray
from hssl_dist.config.parts import RayConfig
from hssl_dist.console import Console
from hssl_dist.jobs import cluster
with cluster.connect(RayConfig(address=sys.argv[1]), Console()):
    print(ray.get(ray.remote(lambda: "let in").remote(), timeout=60))
"""


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with local_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


def answer(address: tuple[str, int], path: str, token: str | None) -> tuple[int, bytes] | None:
    """Status and beginning of what a GET brings; None from what speaks no HTTP."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"http://127.0.0.1:{address[1]}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=KNOCK_TIMEOUT_S) as found:
            return int(found.status), found.read(6)
    except urllib.error.HTTPError as error:
        return error.code, b""
    except (OSError, http.client.HTTPException):  # gRPC answers in frames that are no HTTP/1
        return None


def answers(local: LocalCluster, path: str, token: str | None) -> list[tuple[int, bytes]]:
    """What all ports answer that speak HTTP, but for those that answer all with figures for Prometheus."""
    found = [answer(address, path, token) for address in sorted(local.listening())]
    return [one for one in found if one is not None and one != (200, METRICS)]


def joined(local: LocalCluster, token: str | None, home: Path) -> subprocess.CompletedProcess[str]:
    """What comes of joining the cluster as another process with this token, or none."""
    own = (
        {"RAY_AUTH_MODE": "disabled"}
        if token is None
        else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    )
    environment = {**without_ray(), **ON_LOOPBACK, **own, "HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-c", JOIN, local.gcs],
        env=environment,
        capture_output=True,
        text=True,
        timeout=JOIN_TIMEOUT_S,
        check=False,
    )


def test_it_listens_on_loopback_alone(local: LocalCluster) -> None:
    listening = local.listening()
    assert len(listening) > 4
    assert {ip.removeprefix("::ffff:") for ip, _ in listening} <= {"127.0.0.1", "::1"}


def test_figures_for_prometheus_are_read_without_the_token_and_on_loopback(local: LocalCluster) -> None:
    pages = [
        address
        for address in sorted(local.listening())
        if answer(address, "/metrics", None) == (200, METRICS)
    ]
    assert pages
    assert {ip.removeprefix("::ffff:") for ip, _ in pages} <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize(
    "path", ["/api/jobs/", "/api/version", "/api/job_agent/jobs/", "/logs/", "/api/v0/tasks"]
)
def test_no_api_answers_without_the_token(local: LocalCluster, path: str) -> None:
    assert {status for status, _ in answers(local, path, None)} == {401}
    assert {status for status, _ in answers(local, path, "f" * 64)} == {403}


def test_the_job_api_answers_with_the_token(local: LocalCluster) -> None:
    assert 200 in {status for status, _ in answers(local, "/api/jobs/", local.token)}


@pytest.mark.parametrize("token", [None, "f" * 64], ids=["no token", "a wrong token"])
def test_the_control_store_lets_no_stranger_in(
    local: LocalCluster, tmp_path: Path, token: str | None
) -> None:
    done = joined(local, token, tmp_path)
    assert done.returncode != 0
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == (
        f"hssl_dist.errors.MissingError: no Ray cluster lets this process in at {local.gcs!r} (Failed to "
        f"connect to Ray cluster at {local.gcs}); set RAY_AUTH_MODE and RAY_AUTH_TOKEN as on its nodes, or "
        "leave ray.address and RAY_ADDRESS out for a local one"
    )
    assert local.token not in done.stdout + done.stderr


def test_the_control_store_lets_in_who_has_the_token(local: LocalCluster, tmp_path: Path) -> None:
    done = joined(local, local.token, tmp_path)
    assert (done.returncode, done.stdout) == (0, "let in\n"), done.stderr


def test_the_token_is_in_no_file(local: LocalCluster) -> None:
    assert len(local.token) == 64
    assert list(local.session.rglob("*.log"))
    assert not (local.home / ".ray").exists()
    assert places([local.token], local.session, local.said) == []
