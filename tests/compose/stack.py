"""docker/compose.yaml, brought up by a real engine under a project name of its own, on free ports."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.s3.ports import free_ports

ROOT = Path(__file__).parents[2]
PROJECT = "hssl-test"
FILES = ("docker/compose.yaml", "docker/compose.test.yaml")
SHORT = (
    "--encoder.steps 6 --encoder.warmup_steps 2 --decoder.steps 4 --decoder.warmup_steps 2 "
    "--log_every_steps 1 --checkpoint.every_steps 5"
)
ALL_PROFILES = "cpu,postgres"
_CALL_TIMEOUT_S = 300
_BUILD_TIMEOUT_S = 3600
_UP_TIMEOUT_S = 1800
_POLL_S = 2.0
_ANSWER_TIMEOUT_S = 60


class Stack:
    """The services, with the profile `cpu` and the tests' S3 server."""

    def __init__(self) -> None:
        self.ports = dict(zip(("MLFLOW", "RAY", "S3"), free_ports(3), strict=True))
        self.first_step_s = float("nan")

    # ------------------------------------------------------------------------------------------- the engine

    def compose(
        self, *words: str, timeout_s: float = _CALL_TIMEOUT_S, check: bool = True, **settings: str
    ) -> str:
        """What `docker compose` prints; its errors are in the AssertionError if it fails."""
        files = [word for file in FILES for word in ("--file", str(ROOT / file))]
        ports = {f"HSSL_{name}_PORT": str(port) for name, port in self.ports.items()}
        own = {key: value for key, value in os.environ.items() if not key.startswith(("HSSL_", "COMPOSE_"))}
        environment = {**own, **ports, "COMPOSE_PROFILES": "cpu", "HSSL_FLAGS": SHORT, **settings}
        return _run(
            ["docker", "compose", "--project-name", PROJECT, *files, *words], timeout_s, check, environment
        )

    def build(self) -> None:
        """Both images; what has not changed is not built again."""
        self.compose("build", timeout_s=_BUILD_TIMEOUT_S)

    def up(self, **settings: str) -> tuple[int, str]:
        """Bring all up and wait for `pretrain` to end; its exit status, and what it said."""
        start = datetime.now(UTC)
        self.compose("up", "--detach", timeout_s=_UP_TIMEOUT_S, **settings)
        deadline_s = time.monotonic() + _UP_TIMEOUT_S
        while (state := self.inspect("pretrain")["State"])["Status"] != "exited":
            assert time.monotonic() < deadline_s, self.compose("logs", "--tail", "50")
            time.sleep(_POLL_S)
        # Compose's own `logs` puts codes for terminals before the times.
        said = docker("logs", "--timestamps", self.inspect("pretrain")["Id"])
        if (stepped := re.search(r"^(\S+) step \d+ of ", said, re.MULTILINE)) is not None:
            self.first_step_s = (datetime.fromisoformat(stepped[1]) - start).total_seconds()
        return int(state["ExitCode"]), self.logs("pretrain")

    def up_with_postgres(self) -> None:
        """MLflow and what it needs, its runs in PostgreSQL; returns when it answers."""
        words = ("up", "--detach", "mlflow")
        self.compose(*words, timeout_s=_BUILD_TIMEOUT_S, COMPOSE_PROFILES=ALL_PROFILES)
        deadline_s = time.monotonic() + _UP_TIMEOUT_S
        while self.inspect("mlflow")["State"]["Health"]["Status"] != "healthy":
            assert time.monotonic() < deadline_s, self.logs("mlflow")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Stop all, each with the time that compose.yaml gives it."""
        self.compose("stop")

    def down(self, *words: str) -> None:
        """Take all down; with `--volumes` also what it keeps."""
        self.compose("down", "--timeout", "30", *words, COMPOSE_PROFILES=ALL_PROFILES)

    def logs(self, service: str, *words: str) -> str:
        """What a service has said."""
        return self.compose("logs", "--no-log-prefix", *words, service)

    def services(self) -> list[str]:
        """All services that have a container, also one that has ended."""
        return sorted(set(self.compose("ps", "--all", "--format", "{{.Service}}").split()))

    def inspect(self, service: str) -> dict[str, Any]:
        """The engine's description of a service's container."""
        container = self.compose("ps", "--all", "--quiet", service).strip()
        found: list[dict[str, Any]] = json.loads(_run(["docker", "inspect", container]))
        return found[0]

    def inside(self, service: str, *command: str) -> str:
        """What a command prints in a running container."""
        return self.compose("exec", "--no-TTY", service, *command)

    # ------------------------------------------------------------------------------------------ the services

    def secrets(self) -> dict[str, str]:
        """All that was made at the first start, by file."""
        places = {
            "mlflow": ("mlflow/password", "mlflow/cookie-key", "postgres/password"),
            "ray-head-cpu": ("s3/access-key", "s3/secret-key", "ray/token"),
        }
        return {
            file: self.inside(service, "cat", f"/run/hssl/{file}")
            for service, files in places.items()
            for file in files
        }

    def ask(
        self,
        service: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> tuple[int, Any]:
        """Status and JSON (or text) that a service's published port answers with; `body` makes it a POST."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.ports[service]}{path}",
            data=data,
            headers={"Content-Type": "application/json", **(headers or {})},
        )
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_TIMEOUT_S) as answer:
                return int(answer.status), _read(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, _read(error.read())

    def registered(self, password: str, name: str = "hssl-unet") -> dict[str, Any]:
        """A registered model, with its aliases and newest versions, as MLflow's server describes it."""
        path = f"/api/2.0/mlflow/registered-models/get?name={name}"
        status, answer = self.ask("MLFLOW", path, headers=basic("admin", password))
        assert status == 200, answer
        found: dict[str, Any] = {"aliases": [], **answer["registered_model"]}  # what is empty is left out
        return found

    def storage(self, access_key: str, secret_key: str) -> Any:
        """A plain S3 client, which shares nothing with the ones the services use."""
        from botocore.session import Session

        return Session().create_client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.ports['S3']}",
            region_name="us-east-1",
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
        )


def basic(user: str, password: str) -> dict[str, str]:
    """The header of basic authentication."""
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def bearer(token: str) -> dict[str, str]:
    """The header of Ray's token."""
    return {"Authorization": f"Bearer {token}"}


def etags(client: Any, prefix: str) -> dict[str, str]:
    """ETags of all objects below a prefix of the bucket, by key."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="hssl", Prefix=prefix)
    return {item["Key"]: item["ETag"] for page in pages for item in page.get("Contents", [])}


def docker(*words: str, **settings: str) -> str:
    """What `docker` prints."""
    return _run(["docker", *words], environment={**os.environ, **settings})


def _run(
    command: Sequence[str],
    timeout_s: float = _CALL_TIMEOUT_S,
    check: bool = True,
    environment: Mapping[str, str] | None = None,
) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, env=environment, stdin=subprocess.DEVNULL
    )
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout if check else done.stdout + done.stderr


def _read(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content.decode(errors="replace")
