"""nnU-Net's own trainer and predictor take an export; skipped where their dependencies are missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_nnunet_fine_tunes_and_segments_with_exports(tmp_path: Path) -> None:
    for package in ("nnunetv2", "acvl_utils", "batchgeneratorsv2", "seaborn"):
        pytest.importorskip(package)
    paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.nnunet_side", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    told = json.loads(finished.stdout.splitlines()[-1])
    assert told["loaded"] is True
    assert told["trained"] == 1
    assert told["labels"] > 1
    assert told["difference"] < 1e-5
    assert told["agreement"] > 0.99
