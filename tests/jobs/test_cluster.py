"""Connecting to Ray: what is running is used and left running, what is not there is said in one line."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from hssl_dist.config.parts import RayConfig
from hssl_dist.console import Console
from hssl_dist.errors import ConfigError, WorkerError
from hssl_dist.jobs import cluster
from tests.s3.ports import free_port


@ray.remote
def worker_modules() -> dict[str, object]:
    """What a fresh worker has loaded and knows."""
    import sys

    import hssl_dist

    return {"package": hssl_dist.__file__, "torch": "torch" in sys.modules}


@pytest.mark.usefixtures("ray_cluster")
def test_a_connection_is_shared_and_outlives_the_job():
    stream = io.StringIO()
    with cluster.connect(RayConfig(), Console(stream)):
        found = ray.get(worker_modules.remote())
    assert ray.is_initialized()
    assert stream.getvalue() == ""
    assert found["package"] == cluster.__file__.replace("jobs/cluster.py", "__init__.py")


@pytest.mark.usefixtures("ray_cluster")
def test_a_local_cluster_is_closed_to_strangers():
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


@ray.remote
def killed() -> None:
    """A worker that the system ends, as it does when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


@ray.remote
def refused(error: Exception) -> None:
    """A task that fails by an error of the package, or not."""
    raise error


@pytest.mark.usefixtures("ray_cluster")
def test_a_task_asks_for_no_more_than_a_node_has():
    there = int(max(node["Resources"]["CPU"] for node in ray.nodes()))
    gpus = {"num_gpus": 0.0}
    assert cluster.task_resources(1, gpu=False) == {"num_cpus": 1, **gpus}
    assert cluster.task_resources(there + 60, gpu=False) == {"num_cpus": there, **gpus}
    task = worker_modules.options(**cluster.task_resources(there + 60))
    assert ray.get(task.remote(), timeout=60)["package"]


@pytest.mark.usefixtures("ray_cluster")
def test_a_lost_worker_is_one_line_and_the_package_s_errors_stay_what_they_are():
    with pytest.raises(WorkerError) as caught:
        cluster.result(killed.options(max_retries=0).remote(), "what is done is kept")
    assert str(caught.value).startswith("a Ray worker was lost (")
    assert str(caught.value).endswith("; what is done is kept")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"^no such thing$"):
        cluster.result(refused.remote(ConfigError("no such thing")), "")
    with pytest.raises(ray.exceptions.RayTaskError):
        cluster.result(refused.remote(ZeroDivisionError("unforeseen")), "")


JOIN = """
import sys
from hssl_dist.config.parts import RayConfig
from hssl_dist.console import Console
from hssl_dist.errors import MissingError
from hssl_dist.jobs import cluster
try:
    with cluster.connect(RayConfig(address=sys.argv[1]), Console()):
        pass
except MissingError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:{port}", "[Errno 111] Connection refused"),
        ("nonsense", "Invalid address format: nonsense"),
    ],
)
def test_no_cluster_at_the_address(address, reason):
    address = address.format(port=free_port())
    # A process of its own: this one may be connected already.
    said = subprocess.run(
        [sys.executable, "-c", JOIN, address], capture_output=True, text=True, timeout=60, check=True
    )
    assert said.stdout == (
        f"no Ray cluster answers at {address!r} ({reason}); start one, or leave ray.address and RAY_ADDRESS "
        "out for a local one\n"
    )


START = """
from hssl_dist.config.parts import RayConfig
from hssl_dist.console import Console
from hssl_dist.errors import WorkerError
from hssl_dist.jobs import cluster
try:
    with cluster.connect(RayConfig(num_cpus=1), Console()):
        pass
except WorkerError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("n" * 100, "validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: {folder}"),
        ("file", "[Errno 20] Not a directory: '{folder}/ray'"),
    ],
)
def test_a_local_ray_that_does_not_start_is_one_line_that_says_where_its_logs_are(
    tmp_path: Path, folder: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / folder
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", START],
        capture_output=True,
        text=True,
        timeout=90,
        env={**environment, "RAY_TMPDIR": str(place)},
        check=True,
    )
    assert done.stdout.startswith(f"Ray did not start on this machine ({reason.format(folder=place)}")
    assert done.stdout.endswith(
        f"; its logs are in {place}/ray/session_latest/logs: mend what they say, or wait until the machine "
        "is less busy, and run it again\n"
    )
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr


STOP = """
import os, signal
from hssl_dist.config.parts import RayConfig
from hssl_dist.console import Console
from hssl_dist.jobs import cluster
from hssl_dist.jobs.stopping import stop_requests
with stop_requests() as asked, cluster.connect(RayConfig(num_cpus=1), Console()):
    os.kill(os.getpid(), signal.SIGTERM)
    print("asked" if asked() else "not asked")
"""


def test_sigterm_asks_a_job_on_ray_to_stop_and_does_not_end_it():
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", STOP], capture_output=True, text=True, timeout=90, env=environment, check=False
    )
    assert (done.returncode, done.stdout) == (0, "asked\n"), done.stderr
