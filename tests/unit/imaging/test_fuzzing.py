"""Files damaged at random: a reason of one line or a volume, in little memory and time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROUNDS = 500
PEAK_BYTES = 200 << 20
"""Some 80 MiB of it are the process and its modules."""


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_is_damaged_is_refused_or_a_volume(seed):
    finished = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("fuzzing.py")), str(seed), str(ROUNDS)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONPATH": ".", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    found = json.loads(finished.stdout)
    assert set(found["outcomes"]) == {"accepted", "refused"}
    assert min(found["outcomes"].values()) > ROUNDS / 10
    assert sum(found["outcomes"].values()) == ROUNDS
    assert found["peak_bytes"] < PEAK_BYTES
