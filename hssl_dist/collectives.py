"""Ranks and what they tell each other: counts, rows, sums, objects, barriers.

Every function also works in one process without a process group, where it is the identity. Sizes are
exchanged at each call and never kept, so ragged batches and worlds that grow or shrink are fine. All ranks
must call the same functions in the same order; one that waits longer than the process group's deadline gets
a CollectiveError, which names the ranks that did not come if the group is watched (see `watchdog`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Num, Shaped
from torch import Tensor

from hssl_dist import watchdog
from hssl_dist.errors import CollectiveError
from hssl_dist.memory import is_out_of_memory

T = TypeVar("T")

# Into one tensor; torch renamed it in 2.13.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def is_distributed() -> bool:
    """Whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process in its group; 0 without one."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes in the group; 1 without one."""
    return dist.get_world_size() if is_distributed() else 1


def group_store() -> watchdog.Store:
    """The key-value store through which the group's processes have found each other."""
    store: watchdog.Store = dist.distributed_c10d._get_default_store()  # type: ignore[assignment]
    return store


@dataclass(frozen=True, slots=True)
class GatheredRows:
    """Rows of all ranks in rank order, and which of them are this rank's.

    `counts` has one entry per rank; `rows[start : start + counts[rank()]]` are this rank's own.
    """

    rows: Tensor
    counts: tuple[int, ...]
    start: int


def gather_rows(x: Shaped[Tensor, "n ..."], counts: tuple[int, ...] | None = None) -> GatheredRows:
    """The rows of all ranks, without a gradient; ranks may hold different numbers of rows, also none.

    `counts` of an earlier call with the same row numbers saves the exchange of counts.
    """
    x = x.detach()
    if not is_distributed():
        return GatheredRows(x, (x.shape[0],), 0)
    counts = counts or gather_counts(x.shape[0], x.device)
    largest = max(counts)
    if x.shape[0] < largest:
        x = torch.cat((x, x.new_zeros((largest - x.shape[0], *x.shape[1:]))))
    rows = x.new_empty((len(counts) * largest, *x.shape[1:]))
    with _failing("gathering rows"):
        _all_gather(rows, x.contiguous())
    if min(counts) < largest:
        starts = (rank * largest for rank in range(len(counts)))
        rows = torch.cat([rows[at : at + count] for at, count in zip(starts, counts, strict=True)])
    return GatheredRows(rows, counts, sum(counts[: rank()]))


def gather_counts(count: int, device: torch.device) -> tuple[int, ...]:
    """The number each rank passes, in rank order; `device` is one the process group can send from."""
    if not is_distributed():
        return (count,)
    own = torch.tensor([count], dtype=torch.int64, device=device)
    return tuple(int(other[0]) for other in gather_numbers(own))


def gather_numbers(x: Num[Tensor, " n"]) -> list[list[float]]:
    """The few numbers of each rank, in rank order; all ranks pass as many, of one dtype."""
    if not is_distributed():
        return [x.tolist()]
    own = x.detach().contiguous()
    numbers = own.new_empty(world_size() * own.shape[0])
    with _failing("gathering sizes"):
        _all_gather(numbers, own)
    rows: list[list[float]] = numbers.view(world_size(), -1).tolist()
    return rows


def all_reduce_sum(x: Num[Tensor, "*shape"]) -> Num[Tensor, "*shape"]:
    """The sum over ranks, without a gradient; `x` is left as it is."""
    total = x.detach().clone(memory_format=torch.contiguous_format)
    if is_distributed():
        with _failing("summing"):
            dist.all_reduce(total)
    return total


def broadcast_object(value: T, src: int = 0) -> T:
    """The object that rank `src` passes, on every rank."""
    if not is_distributed():
        return value
    box: list[Any] = [value]
    with _failing("broadcasting an object"):
        dist.broadcast_object_list(box, src=src)
    received: T = box[0]
    return received


def barrier(timeout_s: float = 600.0) -> None:
    """Wait for all ranks. Raises CollectiveError after `timeout_s` seconds."""
    if not is_distributed():
        return
    deadline = timedelta(seconds=timeout_s)
    with _failing(f"a barrier of {timeout_s:g} s", timeout_s):
        if dist.get_backend() == "gloo":
            dist.monitored_barrier(timeout=deadline, wait_all_ranks=True)
        else:
            work = dist.barrier(async_op=True, device_ids=[torch.cuda.current_device()])
            if work is not None:
                work.wait(deadline)


@contextmanager
def joined(what: str) -> Iterator[None]:
    """Inside, torch has collectives of its own, such as DDP's; all ranks come here equally often.

    `what` as in "failed at averaging gradients with the other ranks". Failures of the process group become
    CollectiveErrors, other errors stay as they are.
    """
    if not is_distributed():
        yield
        return
    with _failing(what, only_of_group=True):
        yield


@contextmanager
def _failing(what: str, timeout_s: float | None = None, *, only_of_group: bool = False) -> Iterator[None]:
    """Failures of a collective as CollectiveError that says what this rank did, and whom it waited for."""
    with watchdog.noted(what, timeout_s):
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error) or (only_of_group and not _of_group(error)):
                raise
            reason = watchdog.explain() or f"{str(error).splitlines()[0]}; look at their logs"
            raise CollectiveError(
                f"rank {rank()} of {world_size()} failed at {what} with the other ranks{watchdog.in_step()}: "
                f"{reason}"
            ) from error


def _of_group(error: RuntimeError) -> bool:
    """Whether the process group raised it; gloo has no type of its own, but says where in its source."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
