"""A study's pieces on Ray: what they ask of the cluster, and what a lost worker costs."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from hssl_dist.console import Console
from hssl_dist.jobs.study_runners import Failed, run_pieces
from tests import tiny_study

DEADLINE_S = 60.0


def late() -> Callable[[], bool]:
    """Asks to stop after a while, so that what would wait for ever is an error."""
    give_up_s = time.monotonic() + DEADLINE_S
    return lambda: time.monotonic() > give_up_s


@pytest.mark.usefixtures("ray_cluster")
def test_pieces_of_more_threads_than_there_are_cpus_do_not_wait_for_ever(tmp_path: Path) -> None:
    def twice(item: int, console: Console) -> int:
        return 2 * item

    threads = int(ray.cluster_resources()["CPU"]) + 1
    config = tiny_study.config(tmp_path, runner="ray", threads=threads)
    assert dict(run_pieces(config, [1, 2], twice, Console(io.StringIO()), late())) == {1: 2, 2: 4}


@pytest.mark.usefixtures("ray_cluster")
def test_a_piece_whose_worker_is_killed_has_failed_and_the_others_go_on(tmp_path: Path) -> None:
    def fatal(item: int, console: Console) -> int:
        if item == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    config = tiny_study.config(tmp_path, runner="ray")
    results = dict(run_pieces(config, [1, 2], fatal, Console(io.StringIO()), late()))
    assert results[2] == 2
    failed = results[1]
    assert isinstance(failed, Failed)
    assert failed.reason.startswith("its Ray worker was lost: ")
