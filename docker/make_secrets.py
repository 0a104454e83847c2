"""python make_secrets.py: make the services' secrets, each once, in files of mode 0600 below /run/hssl.

Each folder is a volume of its own, so a service sees those secrets it needs. `HSSL_S3_ACCESS_KEY` is for
servers that prescribe the form of a key's name; the secret key is drawn all the same.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

ROOT = Path("/run/hssl")


def made() -> dict[str, str]:
    """New values by file."""
    return {
        "s3/access-key": os.environ.get("HSSL_S3_ACCESS_KEY") or f"hssl{secrets.token_hex(8)}",
        "s3/secret-key": secrets.token_hex(32),
        "mlflow/password": secrets.token_urlsafe(24),
        "mlflow/cookie-key": secrets.token_hex(32),
        "postgres/password": secrets.token_hex(32),
        "ray/token": secrets.token_hex(32),
    }


def write_once(path: Path, value: str) -> bool:
    """Write a file that is whole or not there; returns whether there was none."""
    if path.exists():
        return False
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(value)
        stream.flush()
        os.fsync(stream.fileno())
    part.rename(path)
    return True


def main() -> None:
    """Write what is missing, and say which, by name."""
    new = [name for name, value in made().items() if write_once(ROOT / name, value)]
    print(f"made {', '.join(new)}" if new else "all secrets are there")


main()
