"""A real MLflow server on loopback, open or behind a password, and one that hangs."""

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
from typing import Self

from hssl_dist.config.parts import TrackingConfig
from tests.s3.ports import free_port

USER = "admin"
START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 20.0


class MlflowServer:
    """A server of one database and one artifact folder, which outlive its processes; so does its port.

    With a password it lets nobody in without that and the name `USER`. Its log is beside the folder, in
    `folder.log`, and so are a password's settings.
    """

    def __init__(self, folder: Path, password: str | None = None) -> None:
        self.folder, self.log, self.port = folder, folder.with_name(f"{folder.name}.log"), free_port()
        self._password = password
        self.url = f"http://127.0.0.1:{self.port}"
        self.tracking = TrackingConfig(uri=self.url, experiment="tests")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--workers", "1", "--allowed-hosts", "127.0.0.1:*"),
            *("--backend-store-uri", f"sqlite:///{self.folder}/server.db"),
            *("--artifacts-destination", str(self.folder / "artifacts")),
            *(() if self._password is None else ("--app-name", "basic-auth")),
        ]
        environment = {
            **os.environ,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            **({} if self._password is None else self._lock(self._password)),
        }
        with self.log.open("ab") as stream:
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
        raise RuntimeError(f"the MLflow server did not start: {self.log.read_text()[-2000:]}")

    def _lock(self, password: str) -> dict[str, str]:
        """The variables by which the server asks for a password."""
        settings = self.folder.with_name(f"{self.folder.name}.ini")
        settings.write_text(
            f"[mlflow]\ndefault_permission = NO_PERMISSIONS\nadmin_username = {USER}\n"
            f"database_uri = sqlite:///{self.folder}/users.db\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        return {
            "MLFLOW_AUTH_CONFIG_PATH": str(settings),
            "MLFLOW_AUTH_ADMIN_PASSWORD": password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "for tests",
        }

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which MLflow's clients log in."""
        if self._password is None:
            return {}
        return {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": self._password}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

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
