"""A real MLflow server on loopback that tests can stop, kill and start again, and one that hangs."""

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
from contextlib import contextmanager
from pathlib import Path

from hssl_dist.config.parts import TrackingConfig

START_TIMEOUT_S = 150.0
STOP_TIMEOUT_S = 20.0


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MlflowServer:
    """A server of one database and one artifact folder, which outlive its processes; so does its port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.tracking = TrackingConfig(uri=self.url, experiment="tests")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--workers", "1", "--allowed-hosts", "127.0.0.1:*"),
            *("--backend-store-uri", f"sqlite:///{self.folder}/server.db"),
            *("--artifacts-destination", str(self.folder / "artifacts")),
        ]
        environment = {
            **os.environ,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        log = self.folder / "server.log"
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                command,
                stdout=stream,
                stderr=stream,
                cwd=self.folder,
                env=environment,
                start_new_session=True,
            )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        self.stop(signal.SIGKILL)
        raise RuntimeError(f"the MLflow server did not start: {log.read_text()[-2000:]}")

    def stop(self, with_signal: int = signal.SIGTERM) -> None:
        """End the server and its worker, which are a process group of their own, if it has not ended yet."""
        process = self.process
        if process is None or process.poll() is not None:
            return
        os.killpg(process.pid, with_signal)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_TIMEOUT_S)

    def kill(self) -> None:
        """SIGKILL, as a machine that goes away would."""
        self.stop(signal.SIGKILL)


@contextmanager
def hung_server() -> Iterator[TrackingConfig]:
    """The address of something that accepts connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield TrackingConfig(uri=f"http://127.0.0.1:{listening.getsockname()[1]}", experiment="tests")
