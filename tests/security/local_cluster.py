"""A local Ray cluster as a job starts it, in a process of its own, for others to knock at."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""What another process needs to join: Ray would look for a loopback address at the machine's own."""

_END_TIMEOUT_S = 120

_SERVE = """
import json, os, sys
from hssl_dist.config.parts import RayConfig
from hssl_dist.console import Console
from hssl_dist.jobs import cluster
with cluster.connect(RayConfig(num_cpus=int(sys.argv[1])), Console()):
    import ray
    token = ray.get(ray.remote(lambda: os.environ["RAY_AUTH_TOKEN"]).remote())
    assert token == os.environ["RAY_AUTH_TOKEN"]
    print(json.dumps({"gcs": ray.get_runtime_context().gcs_address, "token": token}), flush=True)
    sys.stdin.read()
"""


@dataclass(frozen=True)
class LocalCluster:
    """A running cluster: its control store's address, its token, its home, where it keeps things and logs."""

    gcs: str
    token: str
    home: Path
    session: Path
    said: Path
    pid: int

    def listening(self) -> set[tuple[str, int]]:
        """Addresses and ports at which the cluster's processes listen."""
        own = psutil.Process(self.pid)
        return {
            (place.laddr.ip, place.laddr.port)
            for process in (own, *own.children(recursive=True))
            for place in process.net_connections("inet")
            if place.status == psutil.CONN_LISTEN
        }


def without_ray() -> dict[str, str]:
    """This process's environment, which may have a cluster of its own, without that."""
    return {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH_")}


@contextmanager
def local_cluster(
    folder: Path, environment: Mapping[str, str] | None = None, cpus: int = 1
) -> Iterator[LocalCluster]:
    """The cluster, below `folder` (its sockets elsewhere: their paths have to be short)."""
    home, said = folder / "home", folder / "said"
    home.mkdir()
    said.mkdir()
    session = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    own = {**without_ray(), **(environment or {}), "HOME": str(home), "RAY_TMPDIR": str(session)}
    with (said / "stderr").open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(cpus)],
            env=own,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stream,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the cluster did not start: {(said / 'stderr').read_text()[-2000:]}")
        found = json.loads(line)
        yield LocalCluster(found["gcs"], found["token"], home, session, said, process.pid)
    finally:
        process.stdin.close()
        process.wait(_END_TIMEOUT_S)
        process.stdout.close()
        shutil.rmtree(session, ignore_errors=True)
