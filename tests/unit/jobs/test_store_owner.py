"""One preprocessing job at a time writes a dataset; the others wait, and none for ever."""

from __future__ import annotations

import io
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hssl_dist import files
from hssl_dist.console import Console
from hssl_dist.errors import StoreError
from hssl_dist.files.ownership import Ownership
from hssl_dist.jobs.store_owner import owned
from tests.at_once import at_once

TIMEOUT_S = 60.0


@pytest.fixture(params=["disk", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store on this machine's disk, and one where there are no locks."""
    return str(tmp_path) if request.param == "disk" else f"memory://{secrets.token_hex(6)}"


def until_it_fails(check: Callable[[], None]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline_s:
        check()
        time.sleep(0.01)


def test_a_second_job_waits_and_says_so_and_the_order_of_datasets_is_no_matter(root: str) -> None:
    stream, owns = io.StringIO(), threading.Event()

    def second() -> None:
        with owned(root, ["b", "a"], Console(stream)):
            owns.set()

    thread = threading.Thread(target=second)
    with owned(root, ["a", "b"], Console(io.StringIO())) as check:
        thread.start()
        deadline_s = time.monotonic() + TIMEOUT_S
        while not stream.getvalue() and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert not owns.wait(1.5)
        check()
    thread.join(TIMEOUT_S)
    assert owns.is_set()
    assert stream.getvalue() == f"another job is writing {root}/a: waiting until it ends\n"


INSIDE = """
import os, sys, time
from hssl_dist.console import Console
from hssl_dist.jobs.store_owner import owned
print("ready", flush=True)
sys.stdin.readline()
with owned(sys.argv[1], ["a"], Console()), open(sys.argv[1] + "/log", "a", buffering=1) as log:
    print(os.getpid(), "in", file=log)
    time.sleep(0.3)
    print(os.getpid(), "out", file=log)
print(os.getpid())
"""


def test_real_processes_that_start_at_the_same_moment_are_inside_one_at_a_time(tmp_path: Path) -> None:
    pids = at_once(INSIDE, [str(tmp_path)], 3, 4 * TIMEOUT_S)
    lines = (tmp_path / "log").read_text().splitlines()
    assert sorted(lines[::2]) == sorted(f"{pid.strip()} in" for pid in pids)
    assert lines[1::2] == [line.replace(" in", " out") for line in lines[::2]]


def test_jobs_of_other_datasets_do_not_wait(root: str) -> None:
    stream = io.StringIO()
    with owned(root, ["a"], Console(stream)), owned(root, ["b"], Console(stream)):
        assert stream.getvalue() == ""


def test_it_ends_with_an_error_too_and_leaves_no_record(root: str) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^mine$"), owned(root, ["a"], Console(io.StringIO())):
            raise ValueError("mine")
    assert [name for name in files.listing(files.join(root, "a", "owner")) if name != "owner.lock"] == []


def test_a_job_that_was_silent_too_long_finds_that_another_has_taken_over() -> None:
    root = f"memory://{secrets.token_hex(6)}"
    with owned(root, ["a"], Console(io.StringIO()), look_s=0.05) as check:
        other = Ownership(f"{root}/a/owner", "job", lease_s=-60.0)  # for which any lease has passed
        time.sleep(0.05)
        other.claim()
        with pytest.raises(StoreError, match=r"was taken over by another process, since this one was silent"):
            until_it_fails(check)
    other.check()
    other.release()


def test_a_store_that_cannot_be_written_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a file where the dataset should be")
    with (
        pytest.raises(StoreError, match=rf"^{tmp_path}/a cannot be locked: Not a directory$"),
        owned(str(tmp_path), ["a"], Console(io.StringIO())),
    ):
        pass
