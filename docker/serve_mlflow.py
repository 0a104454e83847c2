"""python serve_mlflow.py: MLflow behind a password, artifacts in the bucket, runs in SQLite or PostgreSQL.

PostgreSQL if `COMPOSE_PROFILES` has `postgres`, SQLite in /var/lib/mlflow if not.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from pathlib import Path

_SQLITE = Path("/var/lib/mlflow/mlflow.db")
_POSTGRES = "postgresql+psycopg2://mlflow@postgres:5432/mlflow"  # the password is libpq's PGPASSWORD
_HOSTS = ("mlflow:5000", "localhost:*", "127.0.0.1:*")


def database() -> str:
    """Where runs and models are. Ends with a reason if the services are not those of the profiles."""
    if "postgres" in os.environ.get("COMPOSE_PROFILES", "").split(","):
        if _SQLITE.exists():
            print(f"runs of before are in {_SQLITE}: they stay there, and are not shown", file=sys.stderr)
        return _POSTGRES
    if not runs("postgres"):
        return f"sqlite:///{_SQLITE}"
    sys.exit(
        "the service postgres runs, but COMPOSE_PROFILES does not name it; set COMPOSE_PROFILES=gpu,postgres "
        "(or cpu,postgres) in the environment or docker/.env, and leave --profile out"
    )


def runs(service: str) -> bool:
    """Whether the network has such a service: its name stands for a private address."""
    try:
        return ipaddress.ip_address(socket.gethostbyname(service)).is_private
    except OSError:
        return False


def main() -> None:
    """Become the server."""
    os.environ["MLFLOW_BACKEND_STORE_URI"] = database()
    command = [
        *("mlflow", "server", "--host", "0.0.0.0", "--port", "5000", "--workers", "1"),
        *("--app-name", "basic-auth", "--allowed-hosts", ",".join(_HOSTS)),
        *("--artifacts-destination", "s3://hssl/mlflow"),
    ]
    os.execvp(command[0], command)


main()
