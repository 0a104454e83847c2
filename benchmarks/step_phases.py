"""Where the training thread's time goes: phases of a step, and the timers around the product's own functions.

A phase's time is its own: one that begins inside another stops the other's clock until it ends. What is in no
phase is `bookkeeping`. On the CPU the clock is the host's; on CUDA events are recorded at each border and
read once the device is done, so nothing is waited for that training would not wait for, and a phase's time is
that of the device's queue, pauses included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hssl_dist import collectives
from hssl_dist.sampling.loader import PretrainingLoader
from hssl_dist.training import loop, step
from hssl_dist.training.optimiser import Optimiser

BOOKKEEPING = "bookkeeping"
PHASES = (
    "data",
    "augmentation",
    "forward",
    "loss",
    "backward",
    "optimiser",
    "communication",
    BOOKKEEPING,
)
OVERHEAD = ("data", "augmentation", "loss", BOOKKEEPING)
"""The rest is what a step is for: the network, its optimiser and what ranks have to tell each other."""

Mark = float | torch.cuda.Event


class Phases:
    """Seconds of each phase on one thread since the last `take`; idle until `begin`."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._stack: list[str] = []
        self._marks: list[tuple[str, Mark]] = []
        self.wrapped: DistributedDataParallel | None = None
        """The module whose averaging of gradients is a part of `backward`, if there are ranks."""

    def begin(self) -> None:
        """From here on time is counted."""
        self._stack, self._marks = [BOOKKEEPING], []
        self._mark(BOOKKEEPING)

    def take(self) -> dict[str, float]:
        """Seconds of each phase since `begin`; counting ends."""
        self._mark(BOOKKEEPING)
        if self._cuda:
            torch.cuda.synchronize()
        seconds = dict.fromkeys(PHASES, 0.0)
        for (name, start), (_, stop) in zip(self._marks, self._marks[1:], strict=False):
            seconds[name] += _between(start, stop)
        self._stack, self._marks = [], []
        return seconds

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Inside, time is this phase's."""
        if not self._stack:
            yield
            return
        depth = len(self._stack)
        self._stack.append(name)
        self._mark(name)
        try:
            yield
        finally:
            if len(self._stack) > depth:  # else a turn has ended within
                del self._stack[depth:]
                self._mark(self._stack[-1])

    def turn_to(self, name: str) -> None:
        """The present phase becomes another."""
        if self._stack and self._stack[-1] != name:
            self._stack[-1] = name
            self._mark(name)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function as a phase."""

        def inside(*arguments: Any, **named: Any) -> Any:
            with self.phase(name):
                return function(*arguments, **named)

        return inside

    def _mark(self, name: str) -> None:
        mark: Mark = time.perf_counter()
        if self._cuda:
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
        self._marks.append((name, mark))


def _between(start: Mark, stop: Mark) -> float:
    if isinstance(start, torch.cuda.Event):
        return float(start.elapsed_time(stop)) / 1e3
    assert not isinstance(stop, torch.cuda.Event)
    return stop - start


@contextmanager
def watching(phases: Phases) -> Iterator[None]:
    """Inside, the functions of `hssl_dist.training` that make a step are the phases of it.

    They are called as they are; around each stands a timer, put into its module's or class's place for it.
    """
    timed = phases.timed
    with ExitStack() as stack:

        def put(owner: Any, name: str, new: Any) -> None:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, new)

        put(PretrainingLoader, "batches", _batches(phases, PretrainingLoader.batches))
        stages = {
            name: replace(
                stage,
                prepare=timed("augmentation", stage.prepare),
                coupled=timed("loss", stage.coupled),
                separate=timed("loss", stage.separate),
            )
            for name, stage in step._STAGES.items()
        }
        put(step, "_STAGES", stages)
        put(step, "_look", _look(phases, step._look))
        put(torch.autograd, "backward", _backward(phases, torch.autograd.backward))
        for method in ("clip", "step", "zero_grad"):
            put(Optimiser, method, timed("optimiser", getattr(Optimiser, method)))
        put(collectives, "_all_gather", timed("communication", collectives._all_gather))
        put(dist, "all_reduce", timed("communication", dist.all_reduce))
        put(loop, "distributed", _distributed(phases, loop.distributed))
        yield


def _batches(phases: Phases, batches: Callable[..., Generator[Any]]) -> Callable[..., Generator[Any]]:
    def waiting(loader: PretrainingLoader, start: int, stop: int) -> Generator[Any]:
        with closing(batches(loader, start, stop)) as found:
            while True:
                with phases.phase("data"):
                    batch = next(found, None)
                if batch is None:
                    return
                yield batch

    return waiting


def _look(phases: Phases, look: Callable[..., Any]) -> Callable[..., Any]:
    """The forward pass; preparing its images is a phase inside. Where a gradient reaches its output, the
    loss's backward pass is over and the network's begins.
    """

    def looking(*arguments: Any) -> Any:
        with phases.phase("forward"):
            found = look(*arguments)
        output = found.output
        outputs = [*output.embeddings, *output.task_logits, *output.group_logits]
        outputs += [x for x in (output.dense, output.restored) if x is not None]
        for x in outputs:
            if x.requires_grad:
                x.register_hook(lambda _: phases.turn_to("backward"))
        return found

    return looking


def _backward(phases: Phases, backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass begins in the loss; see `_look`."""

    def passing(*arguments: Any, **named: Any) -> Any:
        with phases.phase("loss"):
            return backward(*arguments, **named)

    return passing


def _distributed(phases: Phases, distributed: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def wrapping(*arguments: Any) -> nn.Module:
        wrapped = distributed(*arguments)
        if isinstance(wrapped, DistributedDataParallel):
            wrapped._set_ddp_runtime_logging_sample_rate(1)
            phases.wrapped = wrapped
        return wrapped

    return wrapping


def averaging_s(wrapped: DistributedDataParallel | None) -> tuple[float, float]:
    """Seconds of a step in which gradients were averaged, by DDP's own clock, and of them those in which the
    backward pass went on; of the last step.
    """
    if wrapped is None:
        return 0.0, 0.0
    known: dict[str, Any] = wrapped._get_ddp_logging_data()  # type: ignore[assignment]
    whole, hidden = (known.get(f"backward_{name}_time", 0) / 1e9 for name in ("comm", "compute_comm_overlap"))
    return whole, hidden
