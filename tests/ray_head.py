"""A Ray cluster of one head, as `ray start` makes it on loopback, behind a token, for drivers and jobs.

    with RayHead(folder) as head:
        words = head.words("submit", "--submission-id", "job-1", "--", "python", ...)
        subprocess.run(words, env=head.environment)
        head.stop("job-1")
        head.said("job-1")             # what the job has printed

It is processes of this test alone, which are ended by their ids.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

import psutil

from tests.s3.ports import free_ports

START_TIMEOUT_S = 300.0
COMMAND_TIMEOUT_S = 300.0
END_TIMEOUT_S = 60.0
_RAY = str(Path(sys.executable).with_name("ray"))
_PORTS = (
    "port",
    "dashboard-port",
    "ray-client-server-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
)


class RayHead:
    """Context manager of a running head. What it says is in `folder/head.log`, its session in `session`."""

    def __init__(self, folder: Path, cpus: int = 2) -> None:
        self._log, self._cpus = folder / "head.log", cpus
        self.session = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # paths of sockets have to be short
        self._ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
        self._token = secrets.token_hex(32)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where drivers join."""
        return f"127.0.0.1:{self._ports['port']}"

    @property
    def job_api(self) -> str:
        """Where jobs are submitted."""
        return f"http://127.0.0.1:{self._ports['dashboard-port']}"

    @property
    def environment(self) -> dict[str, str]:
        """What who joins or submits needs."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "HSSL_"))}
        return {
            **inherited,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_start_wait_time_s": str(int(START_TIMEOUT_S)),  # by its default, 30
        }

    def __enter__(self) -> Self:
        words = [
            *(_RAY, "start", "--head", "--block", "--node-ip-address", "127.0.0.1"),
            *("--dashboard-host", "127.0.0.1", "--num-cpus", str(self._cpus), "--num-gpus", "0"),
            *("--object-store-memory", str(128 << 20), "--temp-dir", str(self.session)),
            *(f"--{name}={number}" for name, number in self._ports.items()),
        ]
        with self._log.open("ab") as stream:
            self._process = subprocess.Popen(
                words, env=self.environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
            )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                said = self._log.read_text()[-2000:]
                self.__exit__()
                raise RuntimeError(f"the head did not start: {said}")
            time.sleep(0.5)
        return self

    def __exit__(self, *_: object) -> None:
        """End what was started, by its process ids."""
        if self._process is None:
            return
        family = self._family()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        psutil.wait_procs(family, timeout=END_TIMEOUT_S)
        for process in {*family, *self._family()}:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(END_TIMEOUT_S)
        shutil.rmtree(self.session, ignore_errors=True)

    def kill_control_store(self) -> None:
        """SIGKILL to the head's GCS, which holds all that the cluster knows."""
        (gcs,) = [process for process in self._family() if process.name() == "gcs_server"]
        gcs.kill()

    # --------------------------------------------------------------------------------------------------- jobs

    def words(self, verb: str, *words: str) -> list[str]:
        """The command `ray job <verb>` for this head; it needs `environment`."""
        return [_RAY, "job", verb, "--address", self.job_api, *words]

    def stop(self, name: str) -> str:
        """`ray job stop`, which waits until the job has ended; what it says."""
        return self._job("stop", name)

    def status(self, name: str) -> str:
        """`ray job status`: what it says."""
        return self._job("status", name)

    def said(self, name: str) -> str:
        """What the job has printed so far."""
        found = sorted(self.session.glob(f"session_*/logs/job-driver-{name}.log"))
        return found[-1].read_text() if found else ""

    # ------------------------------------------------------------------------------------------------ details

    def _job(self, verb: str, *words: str) -> str:
        done = subprocess.run(
            self.words(verb, *words),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def _answers(self) -> bool:
        """Whether the job API and the agent that runs jobs are there."""
        for name in ("port", "dashboard-port", "dashboard-agent-listen-port"):
            try:
                socket.create_connection(("127.0.0.1", self._ports[name]), timeout=5).close()
            except OSError:
                return False
        return True

    def _family(self) -> list[psutil.Process]:
        """The processes that the head has started, by the folder of this head alone that they are given."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(str(self.session) in word for word in process.cmdline()):
                    found.append(process)
        return found
