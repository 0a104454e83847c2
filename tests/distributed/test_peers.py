"""The exactness check passes what is exact and fails what is known to be wrong; bytes on the wire."""

import pytest
import torch
import torch.distributed as dist

from benchmarks import peers
from benchmarks.gradients import MUST_FAIL, PEERS, check_gradients
from benchmarks.gradients_micro import check_micro_batches
from benchmarks.loss_scaling import EMBEDDING_SIZE, QUICK_WIRE_ROWS, CountedCollectives, measure_wire
from tests.distributed.ranks import run_ranks

needs_peers = pytest.mark.skipif(
    bool(peers.missing()), reason=f"{', '.join(peers.missing())} not installed; `make setup` does"
)


@needs_peers
def test_the_check_tells_exact_from_wrong_gradients() -> None:
    checks = {(c.implementation, c.dtype): c for c in check_gradients((30, 30), ("ours", *PEERS))}
    assert {name for name, _ in checks} == {"ours", *PEERS}
    assert {name for (name, _), check in checks.items() if not check.exact} == set(MUST_FAIL)
    for dtype in ("float64", "float32"):
        # The gradient of open_clip's default is 1 / W of the right one, that of its temperature is right.
        default = checks["open_clip_default", dtype]
        assert default.weight_error == pytest.approx(0.5, abs=1e-6)
        assert default.scale == pytest.approx(0.5, abs=1e-6)
        assert default.temperature_error is not None
        assert default.temperature_error < 1e-6
        efficient = checks["metric_learning_efficient", dtype]
        assert efficient.weight_error is not None
        assert efficient.weight_error > 0.5


def test_ragged_ranks() -> None:
    assert all(check.exact for check in check_gradients((41, 19), ("ours",)))


def test_micro_batches() -> None:
    checks = check_micro_batches((41, 19), (7, 60))
    assert [(check.micro_batch, check.exact) for check in checks] == [(7, True)] * 2 + [(60, True)] * 2


@needs_peers
def test_bytes_on_the_wire() -> None:
    wires = {wire.implementation: wire for wire in measure_wire(2, QUICK_WIRE_ROWS, 1)}
    foreign = QUICK_WIRE_ROWS * EMBEDDING_SIZE * 4 / 2
    assert foreign < wires["ours"].received_bytes <= wires["ours"].bound_bytes
    assert wires["lightly"].received_bytes == 3 * foreign  # all-gather, then a sum of the whole gradient
    assert wires["open_clip"].received_bytes == 2 * foreign  # all-gather, then an exchange of gradients


def count_on_a_rank() -> tuple[float, dict[str, int]]:
    rows = torch.zeros(3, 4)
    with CountedCollectives() as counted:
        dist.all_gather([torch.empty_like(rows) for _ in range(2)], rows)
        dist.all_reduce(rows)
        dist.broadcast(rows, src=1)
        with pytest.raises(KeyError, match="barrier"):
            dist.barrier()
    return counted.received_bytes, counted.calls


def test_counted_collectives() -> None:
    calls = {"allgather": 1, "allreduce": 1, "broadcast": 1}
    assert run_ranks(count_on_a_rank, 2) == [(3 * 48, calls), (2 * 48, calls)]
