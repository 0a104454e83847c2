"""Running a function over many cases on Ray, a batch of small ones at a time, within the memory there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from hssl_dist.jobs import cluster

if TYPE_CHECKING:
    from contextlib import ExitStack

    from hssl_dist.config.parts import RayConfig
    from hssl_dist.console import Console

Item = TypeVar("Item")
Result = TypeVar("Result")

_BATCH_CASES = 8
_BATCH_BYTES = 256 << 20  # of memory: a batch of small cases takes about a second
_BATCHES_PER_CPU = 2  # running and waiting: enough to keep workers busy, few enough to stop soon
_KEPT = "what is committed is kept: run it again, with a smaller ray.num_cpus if memory is short"


@dataclass(frozen=True, slots=True)
class Batch(Generic[Item]):
    """Items for one Ray task, and the memory they take together: one may be written as the next is read."""

    items: tuple[Item, ...]
    memory_bytes: int


def batched(sized: Sequence[tuple[Item, int]]) -> list[Batch[Item]]:
    """Batches of `(item, memory in bytes)`, large items first so that none is left over at the end."""
    batches: list[Batch[Item]] = []
    items: list[Item] = []
    total = 0
    for item, memory_bytes in sorted(sized, key=lambda pair: -pair[1]):
        if items and (len(items) == _BATCH_CASES or total + memory_bytes > _BATCH_BYTES):
            batches.append(Batch(tuple(items), total))
            items, total = [], 0
        items.append(item)
        total += memory_bytes
    if items:
        batches.append(Batch(tuple(items), total))
    return batches


class Workers:
    """Ray's workers; Ray is started or joined when the first batch is run, and left when `stack` closes.

    A task takes `cpus` CPUs and, with `gpu`, a GPU where the cluster has any.
    """

    def __init__(
        self, config: RayConfig, console: Console, stack: ExitStack, *, cpus: int = 1, gpu: bool = False
    ) -> None:
        self._config, self._console, self._stack = config, console, stack
        self._cpus, self._gpu = cpus, gpu
        self._connected = False

    def run(
        self, function: Callable[..., Sequence[Result]], batches: Sequence[Batch[Any]], *arguments: object
    ) -> Iterator[Result]:
        """Results of `function(items, *arguments)` over all batches, in the order in which they come.

        Tasks also take their batch's memory, so Ray never runs more at once than the nodes can hold; only a
        few wait. Errors of the package raised in a worker are raised here as they are.
        """
        if not batches:
            return
        if not self._connected:
            self._stack.enter_context(cluster.connect(self._config, self._console))
            self._connected = True
        yield from _run(function, batches, arguments, self._cpus, self._gpu)


def _run(
    function: Callable[..., Sequence[Result]],
    batches: Sequence[Batch[Any]],
    arguments: tuple[object, ...],
    cpus: int,
    gpu: bool,
) -> Iterator[Result]:
    import ray

    remote: Any = ray.remote(function)
    nodes: list[dict[str, Any]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    limit = _BATCHES_PER_CPU * max(1, int(sum(node.get("CPU", 0) for node in nodes)))
    most_bytes, resources = cluster.most_memory_bytes(), cluster.task_resources(cpus, gpu=gpu)
    waiting = list(reversed(batches))
    pending: set[Any] = set()
    try:
        while waiting or pending:
            while waiting and len(pending) < limit:
                batch = waiting.pop()
                # A case that no node has the memory for runs alone on the largest.
                task = remote.options(memory=min(batch.memory_bytes, most_bytes), **resources)
                pending.add(task.remote(batch.items, *arguments))
            ready, _ = ray.wait(list(pending), num_returns=1)
            for reference in ready:
                pending.remove(reference)
                yield from cluster.result(reference, _KEPT)
    finally:
        for reference in pending:
            ray.cancel(reference)
