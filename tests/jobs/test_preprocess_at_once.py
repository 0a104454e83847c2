"""Several preprocessing jobs on one store at once, as real processes that start at the same moment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hssl_dist import files
from hssl_dist.store import read_manifest, verify
from tests.jobs.test_preprocess_killed import CASES, CONFIG, kill_midway, start, write_challenge

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]
TIMEOUT_S = 600
WAITING = "another job is writing "
TOGETHER = """
import sys
import hssl_dist.jobs.preprocess
from hssl_dist import preprocess
print("ready", flush=True)
sys.stdin.readline()
sys.exit(preprocess.main(sys.argv[1:]))
"""


def started(root: Path, store: str, name: str, *flags: str) -> subprocess.Popen[str]:
    """A job that has imported all it needs and waits to be told to go."""
    config = root / f"{name}.yaml"
    config.write_text(CONFIG.format(root=root, store="unused"))
    process = subprocess.Popen(
        [sys.executable, "-c", TOGETHER, "--config", str(config), "--store.url", store, "--json", *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "HSSL_"))},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def let_go(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


def ended(process: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    """The summary of a job that went well, and what it said."""
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1]), err


def contents(root: str) -> dict[str, bytes]:
    """The bytes of everything in a store but locks, by path."""
    found = {files.relative(url, root): files.read(url) for url in files.walk(root)}
    return {path: data for path, data in found.items() if not path.endswith("owner.lock")}


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_two_jobs_do_each_case_once_and_a_third_finds_nothing_to_do(
    request: pytest.FixtureRequest, tmp_path: Path, place: str
) -> None:
    write_challenge(tmp_path)
    store = str(tmp_path / "store") if place == "disk" else request.getfixturevalue("s3_bucket")
    both = [started(tmp_path, store, name) for name in ("one", "two")]
    let_go(*both)
    (one, said_one), (two, said_two) = (ended(process) for process in both)
    assert sorted(run["totals"]["written"] for run in (one, two)) == [0, CASES]
    assert sorted(run["totals"]["unchanged"] for run in (one, two)) == [0, CASES]
    assert sorted(
        said.count(f"{WAITING}{store}/toy: waiting until it ends") for said in (said_one, said_two)
    ) == [
        0,
        1,
    ]
    assert one["datasets"]["toy"]["manifest_sha256"] == two["datasets"]["toy"]["manifest_sha256"]
    assert len(read_manifest(store, "toy").cases) == CASES
    assert verify(store, "toy") == 3 * CASES
    before = contents(store)
    assert not any("owner" in path for path in before)

    third = started(tmp_path, store, "three")
    let_go(third)
    summary, said = ended(third)
    assert (summary["totals"]["written"], summary["totals"]["unchanged"]) == (0, CASES)
    assert "started Ray" not in said
    assert contents(store) == before

    alone = started(tmp_path, str(tmp_path / "alone"), "alone")
    let_go(alone)
    ended(alone)
    assert contents(str(tmp_path / "alone")) == before


def test_two_jobs_with_different_recipes_follow_each_other(tmp_path: Path) -> None:
    write_challenge(tmp_path)
    store = str(tmp_path / "store")
    other = json.dumps(
        [{"name": "toy", "layout": "folder", "source": "challenge", "group": "noise", "modality": "ct",
          "spacing_mm": [2.0, 2.0, 2.0]}]
    )  # fmt: skip
    both = [started(tmp_path, store, "fine"), started(tmp_path, store, "coarse", "--datasets", other)]
    let_go(*both)
    summaries = [ended(process)[0] for process in both]
    assert [summary["totals"]["written"] for summary in summaries] == [CASES, CASES]
    manifest = read_manifest(store, "toy")
    assert len({record.geometry.spacing_mm for record in manifest.cases}) == 1
    assert manifest.sha256 in {summary["datasets"]["toy"]["manifest_sha256"] for summary in summaries}
    assert verify(store, "toy") == 3 * CASES


def test_who_waits_for_a_job_that_is_killed_completes_its_work(tmp_path: Path) -> None:
    write_challenge(tmp_path)
    store = str(tmp_path / "store")
    waiting = started(tmp_path, store, "waiting")
    killed = start(tmp_path, "store")
    while not (tmp_path / "store/toy/owner/owner.lock").exists():
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    let_go(waiting)
    kill_midway(killed, tmp_path / "store/toy/records", CASES // 4)
    summary, said = ended(waiting)
    assert WAITING in said
    assert 0 < summary["totals"]["written"] <= CASES - CASES // 4
    assert summary["totals"]["written"] + summary["totals"]["unchanged"] == CASES
    assert verify(store, "toy") == 3 * CASES
