"""A real MLflow server with basic authentication, as a process of its own on loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

USER = "admin"
_START_TIMEOUT_S = 240.0
_END_TIMEOUT_S = 20.0


class AuthenticatedServer:
    """Context manager of a running server that lets nobody in without `USER` and `password`.

    What it keeps (databases, artifacts) is in `folder`; its log is beside it, in `folder.log`.
    """

    def __init__(self, folder: Path, password: str) -> None:
        self.folder, self.log = folder, folder.with_name(f"{folder.name}.log")
        self._password = password
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which MLflow's clients log in."""
        return {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": self._password}

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        settings = self.folder.with_name(f"{self.folder.name}.ini")
        settings.write_text(
            f"[mlflow]\ndefault_permission = NO_PERMISSIONS\nadmin_username = {USER}\n"
            f"database_uri = sqlite:///{self.folder}/users.db\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        environment = {
            **os.environ,
            "MLFLOW_AUTH_CONFIG_PATH": str(settings),
            "MLFLOW_AUTH_ADMIN_PASSWORD": self._password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "for tests",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(self.port), "--allowed-hosts", "127.0.0.1:*"),
            *("--backend-store-uri", f"sqlite:///{self.folder}/server.db"),
            *("--artifacts-destination", str(self.folder / "artifacts")),
        ]
        with self.log.open("wb") as stream:
            self._process = subprocess.Popen(
                command,
                stdout=stream,
                stderr=stream,
                cwd=self.folder,
                env=environment,
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _wait(self) -> None:
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while self._process.poll() is None and time.monotonic() < deadline_s:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise RuntimeError(f"the MLflow server did not start: {self.log.read_text()[-2000:]}")

    def _stop(self) -> None:
        """End the server and its worker, which are a process group of their own."""
        if self._process.poll() is not None:
            return
        os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(_END_TIMEOUT_S)
