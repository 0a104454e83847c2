"""What workers on Ray ask their driver."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import pytest
import ray


@pytest.mark.usefixtures("ray_cluster")
def test_a_task_that_waits_for_the_drivers_answers_keeps_its_cpus() -> None:
    """Ray starts another task on the CPUs of one whose main thread waits."""
    from hssl_dist.jobs.liaison import Liaison, driver_console, start_liaison, working
    from hssl_dist.jobs.stopping import stop_requests

    class Slow(Liaison):
        """Each answer takes longer than Ray needs to start a task."""

        def begin(self, piece: int) -> bool:
            time.sleep(1.0)
            return super().begin(piece)

        def stop_requested(self) -> bool:
            time.sleep(1.0)
            return super().stop_requested()

        def say(self, line: str) -> None:
            time.sleep(1.0)
            super().say(line)

    def ask(liaison: Any) -> tuple[float, float]:
        start_s = time.monotonic()
        with working(liaison), stop_requests() as asked:
            assert not asked()
            driver_console(liaison).say("a line")
        return start_s, time.monotonic()

    liaison = start_liaison(Slow)
    task = ray.remote(ask).options(num_cpus=ray.cluster_resources()["CPU"])
    times = sorted(ray.get([task.remote(liaison) for _ in range(2)], timeout=60.0))
    assert all(before[1] <= after[0] for before, after in pairwise(times))
    assert ray.get(liaison.lines.remote()) == ["a line"] * 2
