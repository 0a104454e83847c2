"""The Decathlon's public archive on one side, a private store and its runs on the other, by verbs alone.

The archive is made of the real Task04_Hippocampus; who runs the verbs gives the environment and nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hssl_dist import files
from hssl_dist.store import read_manifest, verify
from tests.s3.server import SECRET_KEY, S3Server
from tests.s3.tars import folder_tar

ROOT = Path(__file__).parents[2]
HIPPOCAMPUS = ROOT.parent / "shared" / "data" / "Task04_Hippocampus"
CASES = 10

pytestmark = [pytest.mark.real, pytest.mark.soak, pytest.mark.timeout(900)]


@pytest.fixture
def archive(s3_environment: S3Server, s3_bucket: str, tmp_path: Path) -> str:
    """The archive in a public bucket, a few cases of each part; the folder it is of stays in `tmp_path`."""
    if not HIPPOCAMPUS.is_dir():
        pytest.skip(f"the challenge data is not at {HIPPOCAMPUS}")
    folder = tmp_path / "Task04_Hippocampus"
    description = json.loads((HIPPOCAMPUS / "dataset.json").read_text())
    description["training"] = sorted(description["training"], key=lambda entry: entry["image"])[:CASES]
    description["test"] = sorted(description["test"])[:2]
    named = [name for entry in description["training"] for name in entry.values()] + description["test"]
    for name in named:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(HIPPOCAMPUS / name, folder / name)
    (folder / "dataset.json").write_text(json.dumps(description))
    folder_tar(folder, tmp_path / "Task04_Hippocampus.tar", hidden=True)
    url = files.join(s3_bucket, "Task04_Hippocampus.tar")
    files.write(url, (tmp_path / "Task04_Hippocampus.tar").read_bytes())
    s3_environment.client().put_bucket_acl(Bucket=s3_bucket.removeprefix("s3://"), ACL="public-read")
    return url


@pytest.fixture
def store(s3_environment: S3Server) -> str:
    """A private bucket beside the public one."""
    name = f"private-{os.urandom(6).hex()}"
    s3_environment.client().create_bucket(Bucket=name)
    return f"s3://{name}/hssl"


def start(verb: str, *flags: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HSSL_", "RAY_"))}
    return subprocess.Popen(
        [sys.executable, "-m", f"hssl_dist.{verb}", *flags, "--json"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], status: int = 0) -> dict[str, Any]:
    """The verb's JSON line; no key of the storage is in anything it said."""
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == status, err
    assert SECRET_KEY not in out + err
    summary: dict[str, Any] = json.loads(out.splitlines()[-1])
    return summary


def preprocess(tmp_path: Path, store: str, source: str, **dataset: object) -> dict[str, Any]:
    config = {
        "store": {"url": f"{store}/store"},
        "ray": {"num_cpus": 2},
        "datasets": [
            {"name": "hippocampus", "layout": "msd", "group": "brain-mr", "source": source, **dataset}
        ],
    }
    path = tmp_path / "preprocess.yaml"
    path.write_text(json.dumps(config))
    return finish(start("preprocess", "--config", str(path)))


def test_from_a_public_archive_to_a_resumed_run_on_s3(
    archive: str, store: str, tmp_path: Path, s3_environment: S3Server
) -> None:
    public = archive.rpartition("/")[0]
    before = s3_environment.counts(public)
    first = preprocess(tmp_path, store, archive, anonymous=True)
    made = s3_environment.counts(public) - before
    assert first["totals"] == first["totals"] | {"cases": CASES + 2, "written": CASES + 2, "quarantined": 0}
    # Each file is hashed, surveyed and stored; the index is read once by each process.
    size_bytes = (tmp_path / "Task04_Hippocampus.tar").stat().st_size
    assert made.bytes_sent < 8 * size_bytes
    assert set(made.requests) == {"GET", "HEAD"}

    again = preprocess(tmp_path, store, archive, anonymous=True)
    assert again["totals"]["written"] == 0
    assert (
        again["datasets"]["hippocampus"]["manifest_sha256"]
        == (first["datasets"]["hippocampus"]["manifest_sha256"])
    )
    # The folder the archive was made of has the same cases, byte for byte: there is nothing to do either.
    folder = preprocess(tmp_path, store, str(tmp_path / "Task04_Hippocampus"))
    assert folder["datasets"]["hippocampus"] == again["datasets"]["hippocampus"]

    manifest = read_manifest(f"{store}/store", "hippocampus")
    assert verify(f"{store}/store", "hippocampus") == sum(len(record.objects) for record in manifest.cases)
    assert manifest.cases[0].sources[0].path.startswith("imagesT")
    for url in files.walk(store):
        if url.endswith((".json", ".jsonl", ".html")):
            text = files.read(url).decode()
            assert SECRET_KEY not in text
            assert "anonymous" not in text
            assert s3_environment.endpoint not in text

    flags = (
        *("--store.url", f"{store}/store", "--runs", f"{store}/runs", "--name", "tiny"),
        *("--cache.folder", str(tmp_path / "cache")),
        *("--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db", "--runner", "inline", "--global_batch", "4"),
        *("--network.widths", "[4, 4, 8, 8, 8]", "--network.encoder_blocks", "[1, 1, 1, 1, 1]"),
        *("--sampling.patch_size", "[16, 32, 32]", "--checkpoint.every_steps", "2"),
        *("--encoder.steps", "20", "--encoder.warmup_steps", "2"),
        *("--decoder.steps", "2", "--decoder.warmup_steps", "1"),
    )
    running = start("pretrain", *flags)
    deadline_s = time.monotonic() + 200
    while not files.listing(f"{store}/runs/tiny/checkpoints") and running.poll() is None:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    assert finish(running, status=3)["status"] == "interrupted"
    saved = files.listing(f"{store}/runs/tiny/checkpoints")
    assert saved
    done = finish(start("pretrain", *flags))
    assert done["status"] == "done"
    assert files.exists(f"{store}/runs/tiny/model")
