"""Files damaged at random: a reason of one line or a volume, in little memory and time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.depth import deepened

ROUNDS = deepened(500)
PEAK_BYTES = 120 << 20
"""Beyond the process and its modules: a volume of 64 channels is accepted, a gigabyte is not."""


def run(*arguments: str) -> dict[str, Any]:
    """What `fuzzing.py` prints; it must end by itself, and in time."""
    finished = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("fuzzing.py")), *arguments],
        capture_output=True,
        text=True,
        timeout=max(120, deepened(120)),
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONPATH": ".", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    found: dict[str, Any] = json.loads(finished.stdout)
    return found


@pytest.mark.timeout(max(200, deepened(200)))
@pytest.mark.parametrize(("ending", "seed"), [(".nii.gz", 1), (".nii.gz", 2), (".nrrd", 1), (".mha", 1)])
def test_whatever_is_damaged_is_refused_or_a_volume(ending, seed):
    found = run(ending, str(seed), str(ROUNDS))
    assert set(found["outcomes"]) == {"accepted", "refused"}
    assert min(found["outcomes"].values()) > ROUNDS / 50
    assert sum(found["outcomes"].values()) == ROUNDS
    assert found["peak_bytes"] < PEAK_BYTES


@pytest.mark.parametrize(("ending", "files"), [(".nii.gz", 3), (".nrrd", 2), (".mha", 2)])
def test_a_small_file_that_declares_gigabytes_takes_no_memory(ending, files):
    found = run(ending, "giants")
    assert found["outcomes"] == {"too few bytes": files}
    assert found["peak_bytes"] < 8 << 20
