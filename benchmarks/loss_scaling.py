"""Memory, processor time and bytes on the wire of one forward and backward pass of a contrastive loss.

Memory and time: one process, one thread, float32, D = 128, a loss on the embeddings and their gradient;
fresh process each, sizes and implementations interleaved, medians. Bytes: what one rank receives, counted at
torch's collectives themselves (forward and backward, DDP left out), under the algorithm that moves least; and
the processor time of all ranks together, since work that one process shares between rows of its own is not
shared between ranks.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.contrastive import IMPLEMENTATIONS, available, two_views
from benchmarks.measuring import CannotRun, Measurement, measure, wait_for_memory
from hssl_dist import collectives
from tests.distributed.ranks import run_ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.measuring import Work
    from hssl_dist.console import Console

EMBEDDING_SIZE, TEMPERATURE = 128, 0.1
SIZES, QUICK_SIZES = (8192, 16384, 32768, 65536), (1024, 2048)
COMPARED = ("ours", "textbook", "lightly", "open_clip")
WIRE_ROWS, QUICK_WIRE_ROWS, WORLD_SIZES = 8192, 1024, (2, 4)
NUMBERS_BYTES = 64
"""Allowed for what each rank says about its batch, such as its number of rows."""
MEMORY_WAIT_S = 300.0


@dataclass(frozen=True)
class Scaling:
    """One implementation at one size M (embeddings of all views); medians over the repetitions."""

    implementation: str
    rows: int
    pairs: int
    """Logits that enter the loss."""
    growth_mib: float | None
    cpu_s: float | None
    wall_s: float | None
    repetitions: int
    predicted_growth_mib: float | None
    """From the size before and the power of M; None at the smallest size."""
    predicted_cpu_s: float | None
    """Likewise, with M squared."""
    cannot_run: str | None

    @property
    def known_growth_mib(self) -> float | None:
        """Measured, else predicted."""
        return self.predicted_growth_mib if self.growth_mib is None else self.growth_mib

    @property
    def known_cpu_s(self) -> float | None:
        """Measured, else predicted."""
        return self.predicted_cpu_s if self.cpu_s is None else self.cpu_s


def build_loss_pass(name: str, rows: int) -> Work:
    """One forward and backward pass over `rows` embeddings, warmed up on a small batch."""
    loss_of = IMPLEMENTATIONS[name].loss
    temperature = torch.tensor(TEMPERATURE)

    def one_pass(views: tuple[Tensor, Tensor]) -> float:
        loss = loss_of(*views, temperature)
        loss.backward()
        return loss.item()

    def leaves(n: int) -> tuple[Tensor, Tensor]:
        first, second = two_views(n, EMBEDDING_SIZE)
        return first.requires_grad_(), second.requires_grad_()

    one_pass(leaves(64))
    views = leaves(rows // 2)
    return lambda: one_pass(views)


def measure_scaling(
    sizes: Sequence[int], repetitions: int, memory_limit_mib: float, console: Console
) -> list[Scaling]:
    """Every implementation at every size, round after round; what is predicted not to fit is not run."""
    names = available(COMPARED)
    measured: dict[tuple[str, int], list[Measurement]] = {(n, m): [] for m in sizes for n in names}
    blocked: dict[tuple[str, int], str] = {}
    for repetition in range(repetitions):
        for key in measured:
            if key in blocked:
                continue
            outcome = _measure_one(*key, _predict(*key, measured), memory_limit_mib)
            if isinstance(outcome, CannotRun):
                blocked[key] = outcome.reason
                console.say(f"{key[0]} at M = {key[1]}: {outcome.reason}")
            else:
                measured[key].append(outcome)
                console.say(
                    f"{key[0]} at M = {key[1]}, {repetition + 1} of {repetitions}: "
                    f"{outcome.growth_mib:.0f} MiB, {outcome.cpu_s:.2f} s"
                )
    # What fitted in some rounds, but not once others used the machine's memory, keeps those rounds.
    return [_summary(*key, measured, None if measured[key] else blocked.get(key)) for key in measured]


def _measure_one(
    name: str, rows: int, predicted_mib: float | None, memory_limit_mib: float
) -> Measurement | CannotRun:
    if predicted_mib is not None:
        if predicted_mib > memory_limit_mib:
            return CannotRun(f"predicted {predicted_mib:.0f} MiB, allowed {memory_limit_mib:.0f} MiB")
        if not wait_for_memory(predicted_mib, MEMORY_WAIT_S):
            return CannotRun(f"predicted {predicted_mib:.0f} MiB, more than was free")
    return measure(build_loss_pass, name, rows, memory_limit_mib=memory_limit_mib)


def _predict(name: str, rows: int, measured: dict[tuple[str, int], list[Measurement]]) -> float | None:
    """Peak growth in MiB at this size from the largest size below it that was measured."""
    smaller = [(size, found) for (other, size), found in measured.items() if other == name and size < rows]
    for size, found in sorted(smaller, reverse=True, key=lambda item: item[0]):
        if found:
            growth_mib = median(measurement.growth_mib for measurement in found)
            return growth_mib * (rows / size) ** IMPLEMENTATIONS[name].memory_power
    return None


def _summary(
    name: str,
    rows: int,
    measured: dict[tuple[str, int], list[Measurement]],
    cannot_run: str | None,
) -> Scaling:
    found = measured[name, rows]
    below = [size for (other, size), some in measured.items() if other == name and size < rows and some]
    predicted_cpu_s = None
    if below:
        cpu_s = median(measurement.cpu_s for measurement in measured[name, max(below)])
        predicted_cpu_s = cpu_s * (rows / max(below)) ** 2

    def middle(value: Callable[[Measurement], float]) -> float | None:
        return median(map(value, found)) if found else None

    return Scaling(
        name,
        rows,
        round(IMPLEMENTATIONS[name].similarities * rows**2),
        middle(lambda m: m.growth_mib),
        middle(lambda m: m.cpu_s),
        middle(lambda m: m.wall_s),
        len(found),
        _predict(name, rows, measured),
        predicted_cpu_s,
        cannot_run,
    )


# --------------------------------------------------------------------------------------------------- the wire


@dataclass(frozen=True)
class Wire:
    """One loss on several ranks, forward and backward."""

    implementation: str
    world_size: int
    rows: int
    """M, over all ranks."""
    received_bytes: float
    """By one rank."""
    collectives: dict[str, int]
    """Number of calls of each."""
    bound_bytes: float
    """All-gather of embeddings and log-sum-exps and some numbers about each rank, less the rank's own."""
    cpu_s: float
    """Processor time of all ranks together, one thread each, median."""


def measure_wire(world_size: int, rows: int, repetitions: int) -> list[Wire]:
    """Every distributed implementation on equal ranks; the bytes are the most of any rank."""
    names = tuple(name for name in available(COMPARED) if name != "textbook")
    by_rank = run_ranks(_passes_of_a_rank, world_size, names, rows, repetitions, timeout_s=600)
    bound = _foreign(world_size) * (4 * EMBEDDING_SIZE * rows + 4 * rows + NUMBERS_BYTES * world_size)
    return [
        Wire(
            name,
            world_size,
            rows,
            max(rank[name].received_bytes for rank in by_rank),
            by_rank[0][name].calls,
            bound,
            sum(median(rank[name].cpu_s) for rank in by_rank),
        )
        for name in names
    ]


class _Passes(NamedTuple):
    received_bytes: float
    calls: dict[str, int]
    cpu_s: list[float]


def _passes_of_a_rank(names: tuple[str, ...], rows: int, repetitions: int) -> dict[str, _Passes]:
    """A pass whose bytes are counted, which also warms up; then those that are timed, in turns."""
    n = rows // 2 // collectives.world_size()
    own = slice(collectives.rank() * n, (collectives.rank() + 1) * n)
    first, second = (view[own].requires_grad_() for view in two_views(rows // 2, EMBEDDING_SIZE))

    def one_pass(name: str) -> float:
        start_s = time.process_time()
        IMPLEMENTATIONS[name].loss(first, second, torch.tensor(TEMPERATURE)).backward()
        return time.process_time() - start_s

    passes = {}
    for name in names:
        with CountedCollectives() as counted:
            one_pass(name)
        passes[name] = _Passes(counted.received_bytes, counted.calls, [])
    for _ in range(repetitions):
        for name in names:
            passes[name].cpu_s.append(one_pass(name))
    return passes


class CountedCollectives(TorchDispatchMode):
    """While entered, adds up what this rank receives in torch's collectives, whoever calls them.

    An operator that is not in RECEIVED_BYTES raises KeyError rather than go uncounted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.received_bytes = 0.0
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            name = func._opname.strip("_")
            self.received_bytes += RECEIVED_BYTES[name](args)
            self.calls[name] = self.calls.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _foreign(world_size: int | None = None) -> float:
    """The part of an even exchange that comes from other ranks."""
    world_size = world_size or collectives.world_size()
    return (world_size - 1) / world_size


RECEIVED_BYTES: dict[str, Callable[[tuple[Any, ...]], float]] = {
    "allgather": lambda args: _foreign() * _bytes(args[0][0]),
    "allgather_base": lambda args: _foreign() * args[0].nbytes,
    "allreduce": lambda args: 2 * _foreign() * _bytes(args[0]),
    "alltoall": lambda args: _foreign() * _bytes(args[0]),
    "reduce_scatter": lambda args: _foreign() * _bytes(args[1][0]),
    "scatter": lambda args: _bytes(args[0]) if args[3] != collectives.rank() else 0,
    "broadcast": lambda args: _bytes(args[0]) if args[2] != collectives.rank() else 0,
}
"""Bytes received in each collective from its arguments, under the algorithm that moves least."""
