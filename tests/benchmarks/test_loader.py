"""The benchmark of the loader: that it measures what it says, and that all arms deliver the same bytes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.loader_criteria import judge
from benchmarks.loader_data import Draws, Patch, draw_patches, generate, key, real
from benchmarks.loader_local import MAIN_ARMS, REAL_CONFIG, summary
from benchmarks.loader_peers import _visits
from benchmarks.loader_process import ARMS, run_arm
from benchmarks.loader_s3 import ARMS as S3_ARMS
from benchmarks.loader_table import tables
from benchmarks.measuring import drop_from_page_cache, tree_memory, tree_usage
from tests.data.conftest import REAL_DATA

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


def test_memory_and_time_of_a_process_include_its_workers() -> None:
    code = "import os, time; kept = os.urandom(64 << 20); time.sleep(60)"
    parent = (
        "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1]]); time.sleep(60)"
    )
    before = tree_memory(os.getpid()), tree_usage(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", parent, code], start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while (
            tree_memory(os.getpid()).private_mib - before[0].private_mib < 64 and time.monotonic() < deadline
        ):
            time.sleep(0.05)
        assert 64 <= tree_memory(os.getpid()).private_mib - before[0].private_mib < 128
        assert tree_usage(os.getpid()).cpu_s > before[1].cpu_s
    finally:
        os.killpg(child.pid, 9)
        child.wait()


def test_a_dropped_file_is_read_from_the_disk_again(tmp_path: Path) -> None:
    path = tmp_path / "below" / "file"
    path.parent.mkdir()
    path.write_bytes(os.urandom(8 * MIB))
    assert drop_from_page_cache(tmp_path) == 8 * MIB
    before = tree_usage(os.getpid()).read_bytes
    path.read_bytes()
    if tree_usage(os.getpid()).read_bytes == before:
        pytest.skip(f"the file system of {tmp_path} keeps no files on a disk")
    cold = tree_usage(os.getpid()).read_bytes
    assert cold - before >= 8 * MIB
    path.read_bytes()
    assert tree_usage(os.getpid()).read_bytes == cold


def test_a_visit_of_a_volume_takes_its_next_patches() -> None:
    patches = tuple(Patch(case, (index, 0, 0)) for index, case in enumerate((0, 1, 0, 0, 1, 0)))
    visits = _visits(Draws((1, 1, 1), 2, patches), crops=2)
    assert [[patch.start[0] for patch in visit] for visit in visits] == [[0, 2], [1, 4], [3, 5]]


def test_an_arm_that_fails_says_why(tmp_path: Path) -> None:
    prepared = generate(str(tmp_path), (16, 16, 16), 1)
    draws = draw_patches(prepared, (8, 8, 8), 2, 4)
    prepared.array(prepared.cases[0]).unlink()
    with pytest.raises(RuntimeError, match=r"(?s)MONAI CacheDataset failed.*LoadImaged"):
        run_arm("MONAI CacheDataset", prepared, draws, 0.1, deadline_s=100)


def test_wrong_bytes_are_counted() -> None:
    window = {"patches": 4, "wall_s": 2.0, "cpu_s": 1.0, "read_bytes": 0, "served": None, "figures": {}}
    memory = {"private_mib": 10.0, "file_mib": 1.0}
    outcome = {
        "startup_s": 0.1, "first": window, "steady": window, "peak": memory, "libraries": memory,
        "digests": {"0:0,0,0": "a", "0:1,0,0": "x"},
    }  # fmt: skip
    figures = summary([outcome], {"0:0,0,0": "a", "0:1,0,0": "b", "0:2,0,0": "c"})
    assert (figures["unequal"], figures["checked"], figures["expected"]) == (1, 2, 3)
    assert figures["steady"]["patches_per_s"]["median"] == 2.0


def test_patches_lie_inside_their_volumes_and_differ(tmp_path: Path) -> None:
    prepared = generate(str(tmp_path), (16, 24, 24), 2)
    draws = draw_patches(prepared, (8, 16, 16), 4, 32)
    assert len({key(patch) for patch in draws.patches}) > 16
    for patch in draws.patches:
        assert all(start >= 0 for start in patch.start)
        assert (np.add(patch.start, draws.shape) <= prepared.shapes[patch.case]).all()


@pytest.mark.real
@pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"the challenge data is not at {REAL_DATA}")
def test_real_volumes_are_those_large_enough(tmp_path: Path) -> None:
    prepared = real(str(tmp_path), REAL_CONFIG, (8, 32, 32), per_dataset=3)
    assert len(prepared.shapes) >= 4
    assert all(min(shape) >= 8 and min(shape[1:]) >= 32 for shape in prepared.shapes)


@pytest.mark.soak
@pytest.mark.s3
@pytest.mark.timeout(900)
def test_quick_run_delivers_equal_bytes_in_all_arms_and_fills_the_record() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.loader", "--quick", "--json"],
        cwd=ROOT, capture_output=True, text=True, timeout=840, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-2000:]
    record = json.loads(finished.stdout)
    (local,) = record["local"]
    assert [arm["arm"] for arm in local["arms"]] == list(MAIN_ARMS)
    assert [arm["arm"] for arm in record["s3"]["arms"]] == list(S3_ARMS)
    for arm in [*local["arms"], *record["s3"]["arms"]]:
        assert arm["unequal"] == 0, arm["arm"]
        assert arm["checked"] == arm["expected"] > 8, arm["arm"]
        for window in ("first", "steady"):
            assert arm[window]["patches_per_s"]["median"] > 0
            assert arm[window]["cpu_s_per_patch"]["median"] > 0
        assert arm["memory_mib"]["private"] > 0
        assert arm["startup_s"]["median"] > 0
    for arm in local["arms"]:
        assert arm["disk_bytes"] > 0
    ours = record["s3"]["arms"][0]
    assert ours["first"]["gets_per_patch"] > 0
    assert ours["steady"]["served"]["bytes_sent"] == 0
    assert ours["steady"]["figures"]["cache_hits"] == ours["steady"]["figures"]["regions"] > 0
    assert {criterion["name"] for criterion in record["criteria"]} == {
        criterion.name for criterion in judge(record["local"], record["s3"], quick=True)
    }
    assert set(MAIN_ARMS) <= set(ARMS)
    for arm in MAIN_ARMS:
        assert f"| {arm} |" in tables(record)
