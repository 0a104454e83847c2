"""`kill -9` of a preprocessing job midway, for real: what is left is whole, and the next run completes it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil

from hssl_dist import files
from hssl_dist.imaging import write_nifti
from hssl_dist.store import read_records, verify

CASES = 24
CONFIG = """
source_root: {root}
store: {{url: {root}/{store}}}
ray: {{num_cpus: 2}}
datasets:
  - {{name: toy, layout: folder, source: challenge, group: noise, modality: ct, spacing_mm: [1.0, 1.0, 1.0]}}
"""


def write_challenge(root: Path) -> None:
    """Unlabelled volumes that take a while each: they are large once resampled."""
    (root / "challenge/images").mkdir(parents=True)
    for number in range(CASES):
        rng = np.random.default_rng(number)
        image = rng.normal(-200.0, 300.0, (40, 40, 30)).astype(np.int16)
        write_nifti(root / f"challenge/images/scan{number:02}.nii.gz", image, np.diag([2.0, 2.0, 2.0, 1.0]))


def start(root: Path, store: str) -> subprocess.Popen[str]:
    config = root / f"{store}.yaml"
    config.write_text(CONFIG.format(root=root, store=store))
    words = [sys.executable, "-m", "hssl_dist.preprocess", "--config", str(config), "--json"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def kill_midway(process: subprocess.Popen[str], records: Path, count: int) -> None:
    """SIGKILL to the driver's process group once `count` cases are committed; waits until Ray is gone too."""
    deadline = time.monotonic() + 120
    while len(list(records.glob("[!.]*.jsonl"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs(family, timeout=30)
    for orphan in alive:
        orphan.kill()


def test_a_killed_run_is_completed_to_the_same_bytes(tmp_path):
    write_challenge(tmp_path)
    records = tmp_path / "killed/toy/records"
    kill_midway(start(tmp_path, "killed"), records, CASES // 4)
    left = [path.stem for path in records.glob("[!.]*.jsonl")]
    assert CASES // 4 <= len(left) < CASES
    assert not (tmp_path / "killed/toy/manifest.jsonl").exists()
    committed = read_records(str(tmp_path / "killed"), "toy", left)
    for record in committed.values():
        for item in record.objects:
            assert files.sha256(f"{tmp_path}/killed/toy/{item.path}") == (item.sha256, item.size_bytes)
    before = {path: path.stat().st_mtime_ns for path in records.glob("[!.]*.jsonl")}

    finished, unkilled = start(tmp_path, "killed"), start(tmp_path, "unkilled")
    for process in (finished, unkilled):
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        assert '"status":"done"' in out
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing is done twice"
    for name in ("manifest.jsonl", "survey.jsonl"):
        assert (tmp_path / "killed/toy" / name).read_bytes() == (
            tmp_path / "unkilled/toy" / name
        ).read_bytes()
    assert verify(str(tmp_path / "killed"), "toy") == 3 * CASES

    again = start(tmp_path, "killed")
    out, err = again.communicate(timeout=100)
    totals = json.loads(out)["totals"]
    assert (totals["written"], totals["unchanged"], totals["quarantined"]) == (0, CASES, 0)
    assert "started Ray" not in err
