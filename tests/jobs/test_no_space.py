"""Disks that are full and limits on file sizes, met by whole jobs: one line, and what was there stays whole.

For pretraining see `unit/training/test_checkpoint_faults.py`.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hssl_dist import files
from hssl_dist.imaging import write_nifti
from hssl_dist.store import read_manifest, verify
from tests.tiny_model import save_tiny_model, write_scan

TIMEOUT_S = 240
BELOW = str(Path(__file__).with_name("below.py"))
ADVICE = (
    "make room there, or raise the quota or the limit on file sizes, and run it again: "
    "what is committed is kept"
)
CASES = 8
CONFIG = """
source_root: {root}
store: {{url: {store}}}
ray: {{num_cpus: 2}}
datasets:
  - {{name: toy, layout: folder, source: challenge, group: {group}, modality: mr}}
"""


def finished(words: list[str]) -> tuple[int, str]:
    """Exit status of a command and what it said."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "HSSL_"))}
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------- predicting


def test_a_label_map_that_is_too_large_leaves_those_before_it(tmp_path: Path) -> None:
    model, scans, output = save_tiny_model(tmp_path / "model"), tmp_path / "scans", tmp_path / "out"
    flags = ["--model", model, "--input", str(scans), "--output", str(output), "--threads", "1"]
    write_scan(scans / "a.nii.gz", 0)
    unlimited = [sys.executable, BELOW, str(1 << 30), "predict", *flags]
    assert finished(unlimited)[0] == 0
    before = contents(output)
    write_scan(scans / "b.nii.gz", 1, (64, 60, 40))

    status, said = finished([sys.executable, BELOW, "4096", "predict", *flags])
    assert status == 1, said
    assert said.splitlines()[-1] == (
        f"hssl predict: error: {output} cannot be written: File too large; what is done is kept: make room "
        "or choose another output, and run it again"
    )
    after = contents(output)
    assert set(after) - set(before) == {
        "records/b.json"
    }  # which claims the name, and says that nothing is there
    assert json.loads(after["records/b.json"])["label_map"] is None
    assert {path: after[path] for path in before} == before

    assert finished(unlimited)[0] == 0
    assert {path: contents(output)[path] for path in before} == before
    assert len(gzip.decompress((output / "b.nii.gz").read_bytes())) > 64 * 60 * 40


# ---------------------------------------------------------------------------------------------- preprocessing


def write_challenge(root: Path) -> None:
    (root / "challenge/images").mkdir(parents=True)
    for number in range(CASES):
        rng = np.random.default_rng(number)
        image = rng.normal(200.0, 30.0, (40, 40, 30)).astype(np.int16)
        write_nifti(root / f"challenge/images/s{number}.nii.gz", image, np.diag([1.0, 1.0, 1.0, 1.0]))


def configure(root: Path, store: Path, group: str = "noise") -> list[str]:
    (root / f"{group}.yaml").write_text(CONFIG.format(root=root, store=store, group=group))
    return ["--config", str(root / f"{group}.yaml")]


def test_a_manifest_that_is_too_large_leaves_the_one_before(tmp_path: Path) -> None:
    write_challenge(tmp_path)
    store = tmp_path / "store"
    words = [sys.executable, "-m", "hssl_dist.preprocess"]
    assert finished([*words, *configure(tmp_path, store)])[0] == 0
    manifest = store / "toy/manifest.jsonl"
    before = manifest.read_bytes()
    largest_record = max(path.stat().st_size for path in (store / "toy/records").glob("*.jsonl"))
    assert largest_record < 8192 < len(before)

    renamed = configure(tmp_path, store, group="renamed")  # which changes the records and nothing else
    status, said = finished([sys.executable, BELOW, "8192", "preprocess", *renamed])
    assert status == 1, said
    assert said.splitlines()[-1] == (
        f"hssl preprocess: error: the store {store} could not be written: [Errno 27] File too large; {ADVICE}"
    )
    assert manifest.read_bytes() == before
    assert not list((store / "toy").glob(".*.partial"))
    assert verify(str(store), "toy") == 3 * CASES
    assert finished([*words, *renamed])[0] == 0
    assert {record.group for record in read_manifest(str(store), "toy").cases} == {"renamed"}


def in_a_small_disk(folder: Path, size_bytes: int, words: list[str]) -> list[str]:
    """A command that finds a disk of that size at a folder, and then copies what it left there to `kept`."""
    script = (
        f"mount -t tmpfs -o size={size_bytes} tmpfs {folder} && {{ cp -a {folder}.before/. {folder}/; "
        f'"$@"; status=$?; cp -a {folder}/. {folder}.kept/; exit $status; }}'
    )
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", *words]


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_full_disk_ends_preprocessing_and_what_is_committed_is_whole(tmp_path: Path) -> None:
    store = tmp_path / "disk"
    for folder in (store, Path(f"{store}.before"), Path(f"{store}.kept")):
        folder.mkdir()
    if subprocess.run(in_a_small_disk(store, 1 << 20, ["true"]), check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a disk of their own")
    write_challenge(tmp_path)
    words = [sys.executable, "-m", "hssl_dist.preprocess", *configure(tmp_path, store)]
    status, said = finished(in_a_small_disk(store, 400 << 10, words))
    assert status == 1, said
    last = said.splitlines()[-1]
    assert last.startswith("hssl preprocess: error: case 's")
    assert last.endswith(
        f" could not be written to {store}/toy: [Errno 28] No space left on device; {ADVICE}"
    )

    kept = Path(f"{store}.kept")
    committed = [path.stem for path in (kept / "toy/records").glob("[!.]*.jsonl")]
    assert len(committed) < CASES
    assert not (kept / "toy/manifest.jsonl").exists()
    assert not list(kept.rglob("*.partial"))
    shutil.copytree(kept, store, dirs_exist_ok=True)
    assert finished(words)[0] == 0
    alone = tmp_path / "alone"
    assert finished([*words, "--store.url", str(alone)])[0] == 0
    assert contents(store) == contents(alone)
    assert files.exists(str(alone / "toy/manifest.jsonl"))
