"""`kill -9` of a predicting job midway, for real: no half file, nothing twice, the same bytes at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from hssl_dist import files
from hssl_dist.jobs.predict_cases import PredictionRecord
from tests.tiny_model import save_tiny_model, write_scan

CASES = 8


def start(model: str, scans: Path, output: Path) -> subprocess.Popen[str]:
    words = ["--model", model, "--input", str(scans), "--output", str(output), "--threads", "1", "--json"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HSSL_")}
    return subprocess.Popen(
        [sys.executable, "-m", "hssl_dist.predict", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_a_killed_run_is_completed_to_the_same_bytes(tmp_path):
    model = save_tiny_model(tmp_path / "model", patch_size=(16, 32, 32))
    for number in range(CASES):
        write_scan(tmp_path / f"scans/s{number:02}.nii.gz", number, (44, 40, 24))
    output = tmp_path / "killed"
    process = start(model, tmp_path / "scans", output)
    deadline = time.monotonic() + 60
    while len(list(output.glob("s*.nii.gz"))) < CASES // 4:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL

    done = {}
    for path in (output / "records").glob("[!.]*.json"):
        record = PredictionRecord.model_validate_json(path.read_bytes())
        if record.label_map is not None:
            url = str(output / record.label_map.path)
            assert files.sha256(url) == (record.label_map.sha256, record.label_map.size_bytes)
            done[record.case] = os.stat(url).st_mtime_ns  # noqa: PTH116
    assert CASES // 4 - 1 <= len(done) < CASES

    summaries = []
    for place in (output, tmp_path / "unkilled"):
        again = start(model, tmp_path / "scans", place)
        out, err = again.communicate(timeout=120)
        assert again.returncode == 0, err
        summaries.append(json.loads(out))
    assert (summaries[0]["predicted"], summaries[0]["skipped"]) == (CASES - len(done), len(done))
    assert summaries[1]["predicted"] == CASES
    for path in (tmp_path / "unkilled").rglob("s*.*"):
        found = output / path.relative_to(tmp_path / "unkilled")
        assert found.read_bytes() == path.read_bytes()
    for case, time_ns in done.items():
        assert (output / f"{case}.nii.gz").stat().st_mtime_ns == time_ns
