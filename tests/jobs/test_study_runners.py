"""A study's pieces on Ray: what they ask of the cluster, what a lost worker costs, and a stop."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import ray

from hssl_dist.console import Console
from hssl_dist.errors import Interrupted
from hssl_dist.jobs import cluster
from hssl_dist.jobs.stopping import stop_requests
from hssl_dist.jobs.study_runners import Failed, run_pieces
from tests import tiny_study

DEADLINE_S = 60.0


def late() -> Callable[[], bool]:
    """Asks to stop after a while, so that what would wait for ever is an error."""
    give_up_s = time.monotonic() + DEADLINE_S
    return lambda: time.monotonic() > give_up_s


def little(_: int) -> int:
    """The memory of a piece that has none to speak of."""
    return 1 << 20


@pytest.mark.usefixtures("ray_cluster")
def test_pieces_of_more_threads_than_there_are_cpus_do_not_wait_for_ever(tmp_path: Path) -> None:
    def twice(item: int, console: Console) -> int:
        return 2 * item

    threads = int(ray.cluster_resources()["CPU"]) + 1
    config = tiny_study.config(tmp_path, runner="ray", threads=threads)
    assert dict(run_pieces(config, [1, 2], twice, Console(io.StringIO()), late(), little)) == {1: 2, 2: 4}


@pytest.mark.usefixtures("ray_cluster")
def test_a_piece_whose_worker_is_killed_has_failed_and_the_others_go_on(tmp_path: Path) -> None:
    def fatal(item: int, console: Console) -> int:
        if item == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    config = tiny_study.config(tmp_path, runner="ray")
    results = dict(run_pieces(config, [1, 2], fatal, Console(io.StringIO()), late(), little))
    assert results[2] == 2
    failed = results[1]
    assert isinstance(failed, Failed)
    assert failed.reason.startswith("its Ray worker was lost: ")


@pytest.mark.usefixtures("ray_cluster")
def test_pieces_that_do_not_fit_in_memory_together_wait_for_each_other(tmp_path: Path) -> None:
    def timed(item: int, console: Console) -> tuple[float, float]:
        start_s = time.monotonic()
        time.sleep(0.5)
        return start_s, time.monotonic()

    def most_of_it(item: int) -> int:
        return 2 * cluster.most_memory_bytes() if item == 0 else int(0.6 * cluster.most_memory_bytes())

    config = tiny_study.config(tmp_path, runner="ray")
    found = run_pieces(config, [0, 1, 2], timed, Console(io.StringIO()), late(), most_of_it)
    times = sorted(result for _, result in found if not isinstance(result, Failed))
    assert len(times) == 3  # also the one that no node has the memory for: it runs alone
    assert all(before[1] <= after[0] for before, after in pairwise(times))


@pytest.mark.usefixtures("ray_cluster")
def test_a_piece_whose_worker_is_there_is_not_told_as_lost(tmp_path: Path) -> None:
    def odd(item: int, console: Console) -> object:
        if item == 1:
            raise Interrupted("the node goes away")
        return threading.Lock() if item == 2 else item

    config = tiny_study.config(tmp_path, runner="ray")
    found = dict(run_pieces(config, [1, 2, 3], odd, Console(io.StringIO()), late(), little))
    assert found[1] == Failed("it was asked to stop; what is done is kept; run it again to go on")
    assert isinstance(found[2], Failed)
    assert found[2].reason.startswith("TypeError: ")
    assert found[3] == 3


@pytest.mark.usefixtures("ray_cluster")
def test_a_stop_waits_for_what_has_begun_to_save_its_state_and_begins_no_more(tmp_path: Path) -> None:
    """One piece hears of it and ends, another has a result all the same; the third has no CPU yet."""

    def slow(item: int, console: Console) -> int:
        (tmp_path / f"begun-{item}").touch()
        give_up_s = time.monotonic() + DEADLINE_S
        with stop_requests() as asked:
            while not asked() and time.monotonic() < give_up_s:
                time.sleep(0.01)
        if item == 1:
            (tmp_path / "saved").touch()
            raise Interrupted("a checkpoint is saved")
        return item

    def both_have_begun() -> bool:
        return (tmp_path / "begun-1").exists() and (tmp_path / "begun-2").exists()

    threads = int(ray.cluster_resources()["CPU"]) // 2
    config = tiny_study.config(tmp_path, runner="ray", threads=threads)
    told, found = io.StringIO(), []
    pieces = run_pieces(config, [1, 2, 3], slow, Console(told), both_have_begun, little)
    with pytest.raises(Interrupted, match=r"^what is done is kept; run it again to go on$"):
        found.extend(pieces)
    assert found == [(2, 2)]
    assert (tmp_path / "saved").exists()
    assert not (tmp_path / "begun-3").exists()
    assert told.getvalue() == "asked to stop: saving a checkpoint\n"
