"""Collectives between real ranks, and alone."""

import time

import pytest
import torch

from hssl_dist import collectives
from hssl_dist.errors import TrainingError
from tests.distributed.ranks import run_ranks

COUNTS = (3, 0, 2)


def gathers_of_a_rank() -> dict[str, object]:
    rank = collectives.rank()
    rows = (10 * rank + torch.arange(2 * COUNTS[rank])).reshape(-1, 2).double()
    gathered = collectives.gather_rows(rows)
    return {
        "world": (rank, collectives.world_size(), collectives.is_distributed()),
        "rows": (gathered.rows.tolist(), gathered.counts, gathered.start),
        "sum": collectives.all_reduce_sum(torch.tensor([1.0, rank])).tolist(),
        "object": collectives.broadcast_object({"from": rank}, src=1),
        "barrier": collectives.barrier(timeout_s=30),
    }


def test_ragged_ranks() -> None:
    results = run_ranks(gathers_of_a_rank, 3)
    rows = [[0, 1], [2, 3], [4, 5], [20, 21], [22, 23]]
    starts = [0, 3, 3]
    for rank, result in enumerate(results):
        assert result["world"] == (rank, 3, True)
        assert result["rows"] == (rows, COUNTS, starts[rank])
        assert result["sum"] == [3, 3]
        assert result["object"] == {"from": 1}
        assert result["barrier"] is None


def late_rank() -> str:
    if collectives.rank() == 1:
        time.sleep(3)
        return ""
    with pytest.raises(TrainingError) as caught:
        collectives.barrier(timeout_s=0.5)
    return str(caught.value)


def test_barrier_names_the_missing_rank() -> None:
    message, _ = run_ranks(late_rank, 2)
    assert message.startswith("rank 0 of 2 failed at a barrier of 0.5 s with the other ranks: ")
    assert "1" in message.partition(": ")[2]
    assert message.endswith("; look at their logs")


def gather_too_late() -> str:
    if collectives.rank() == 1:
        time.sleep(6)
        return ""
    with pytest.raises(TrainingError) as caught:
        collectives.gather_rows(torch.ones(2, 3))
    return str(caught.value)


def test_a_collective_keeps_the_groups_deadline() -> None:
    start = time.monotonic()
    message, _ = run_ranks(gather_too_late, 2, timeout_s=40, deadline_s=2)
    assert message.startswith("rank 0 of 2 failed at gathering sizes with the other ranks: ")
    assert message.endswith("; look at their logs")
    assert time.monotonic() - start < 40


def test_one_process_needs_no_group() -> None:
    rows = torch.arange(6.0).reshape(3, 2).requires_grad_()
    assert (collectives.rank(), collectives.world_size(), collectives.is_distributed()) == (0, 1, False)
    assert collectives.gather_rows(rows).counts == (3,)
    assert torch.equal(collectives.all_reduce_sum(rows), rows.detach())
    assert collectives.broadcast_object("x") == "x"
    collectives.barrier()


def failing_rank() -> None:
    if collectives.rank() == 1:
        raise ValueError("on purpose")


def hanging_rank() -> None:
    time.sleep(60)


def test_run_ranks_passes_on_a_ranks_traceback() -> None:
    with pytest.raises(AssertionError, match=r"rank 1 raised:\n(?s:.*)ValueError: on purpose"):
        run_ranks(failing_rank, 2)


def test_run_ranks_keeps_its_deadline() -> None:
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"ranks \[0\] took more than 8 s"):
        run_ranks(hanging_rank, 1, timeout_s=8)
    assert time.monotonic() - start < 20
