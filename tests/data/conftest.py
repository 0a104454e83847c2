"""The real challenge datasets, and the store that is made of them once per session."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
REAL_DATA = ROOT.parent / "shared" / "data"


@dataclass(frozen=True)
class RealStore:
    """A store of all real datasets, with what the two preprocessing runs said and how long they took."""

    url: Path
    first: dict[str, Any]
    second: dict[str, Any]
    first_s: float
    second_s: float


@pytest.fixture(scope="session")
def real_data() -> Path:
    if not REAL_DATA.is_dir():
        pytest.skip(f"the challenge data is not at {REAL_DATA}")
    return REAL_DATA


@pytest.fixture(scope="session")
def real_store(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> RealStore:
    url = tmp_path_factory.mktemp("real") / "store"
    results = []
    for _ in range(2):
        start_s = time.monotonic()
        summary = run_verb(
            "preprocess", "--config", "configs/preprocess/real.yaml", "--store.url", f"file://{url}"
        )
        results.append((summary, time.monotonic() - start_s))
    (first, first_s), (second, second_s) = results
    return RealStore(url, first, second, first_s, second_s)


@pytest.fixture(name="run_verb", scope="session")
def run_verb_fixture() -> Callable[..., dict[str, Any]]:
    """`run_verb(verb, *flags, timeout_s=...)`: run a verb as its users do; its JSON line."""
    return run_verb


def run_verb(verb: str, *flags: str, timeout_s: float = 900) -> dict[str, Any]:
    """Run a verb as its users do and return its JSON line."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HSSL_")}
    finished = subprocess.run(
        [sys.executable, "-m", f"hssl_dist.{verb}", *flags, "--json"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert finished.returncode == 0, finished.stderr
    summary: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return summary
