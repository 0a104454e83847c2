"""The pieces of the model that are measured on this machine, and the runs it is checked against.

Pieces: a step of one rank alone at several batches; the same beside as many others as there are cores left;
gathers and reductions of gloo at several sizes. Checks: runs of W ranks, whose global batch is the same.
"""

from __future__ import annotations

import os
import time
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from benchmarks.scaling_model import fit_exchange, fit_line
from benchmarks.step_turns import ArmSpec, Kept, in_turns
from hssl_dist import collectives
from tests.distributed.ranks import run_ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.scaling_model import Exchange, Line
    from hssl_dist.config.pretrain import PretrainConfig

GATHER_BYTES = (1 << 10, 1 << 16, 1 << 20)
REDUCE_BYTES = (1 << 8, 1 << 20, 1 << 24)
_EXCHANGES = 15


def specs(config: PretrainConfig, folder: str, worlds: list[int], turn_s: float) -> list[ArmSpec]:
    """Alone at the batch of a rank of each world, side by side, and the worlds themselves."""
    cores = len(os.sched_getaffinity(0))

    def arm(name: str, batch: int, **changes: Any) -> ArmSpec:
        own = config.model_copy(update={"global_batch": batch})
        return ArmSpec(name, "ours", folder, own.model_dump(mode="json"), turn_s=turn_s, **changes)

    batches = sorted({config.global_batch // world for world in worlds})
    beside = arm(f"{cores} side by side", batches[-1], ranks=cores, together=False)
    return [
        *(arm(f"alone, batch {batch}", batch) for batch in batches),
        *([beside] if cores > 1 else []),
        *(arm(f"W = {world}", config.global_batch, ranks=world) for world in worlds),
    ]


def measure_runs(arms: list[ArmSpec], rounds: int, say: Callable[[str], None], kept: Kept) -> dict[str, Any]:
    """Seconds of a step (median of the turns), and MiB at the peak, by the arm's name."""
    found = {}
    for name, outcome in in_turns(arms, rounds, say, kept).items():
        if "cannot_run" in outcome:
            raise RuntimeError(f"{name}: {outcome['cannot_run']}")
        about, turns = outcome["about"], outcome["turns"]
        found[name] = {
            "step_s": median(turn["wall_s"] / turn["steps"] for turn in turns),
            "step_s_of_turns": [turn["wall_s"] / turn["steps"] for turn in turns],
            "peak_mib": max(turn["peak_mib"] for turn in turns),
            "averaging_s": median(turn["averaging_s"] / turn["steps"] for turn in turns),
            "flops_per_step": sum(about["flops_per_step"].values()),
        }
    return found


def measure_exchanges(world: int) -> dict[str, dict[str, float]]:
    """Seconds of gloo's gathers and reductions among so many ranks, by bytes: medians of rank 0's."""
    gathers, reductions = run_ranks(_exchanges_of_a_rank, world)[0]
    return {"gathers": gathers, "reductions": reductions}


def _exchanges_of_a_rank() -> tuple[dict[str, float], dict[str, float]]:
    def timed(exchange: Callable[[], object]) -> float:
        taken = []
        for _ in range(_EXCHANGES):
            collectives.barrier()
            start_s = time.perf_counter()
            exchange()
            taken.append(time.perf_counter() - start_s)
        return median(taken)

    gathers, reductions = {}, {}
    for size in GATHER_BYTES:
        rows = torch.zeros(size // 4 // collectives.world_size(), 1)
        counts = (len(rows),) * collectives.world_size()
        gathers[str(size)] = timed(lambda rows=rows, counts=counts: collectives.gather_rows(rows, counts))
    for size in REDUCE_BYTES:
        values = torch.zeros(size // 4)
        reductions[str(size)] = timed(lambda values=values: dist.all_reduce(values))
    return gathers, reductions


# ---------------------------------------------------------------------------------------- pieces from figures


def compute_line(runs: Mapping[str, Any]) -> Line:
    """Seconds of a step alone by its batch."""
    return fit_line(_alone(runs, "step_s"))


def memory_line(runs: Mapping[str, Any]) -> Line:
    """MiB at the peak by the batch."""
    return fit_line(_alone(runs, "peak_mib"))


def _alone(runs: Mapping[str, Any], key: str) -> dict[float, float]:
    prefix = "alone, batch "
    return {
        float(name.removeprefix(prefix)): figures[key]
        for name, figures in runs.items()
        if name.startswith(prefix)
    }


def slowdown(runs: Mapping[str, Any]) -> float:
    """How much longer a step takes beside as many others as there are cores left; 1 at least."""
    beside = [figures["step_s"] for name, figures in runs.items() if name.endswith("side by side")]
    if not beside:
        return 1.0
    alone = _alone(runs, "step_s")
    return max(1.0, beside[0] / alone[max(alone)])


def exchange_of(found: Mapping[str, Mapping[str, float]], world: int) -> Exchange:
    """What was measured among so many ranks, as the model has it."""
    gathers, reductions = (
        {float(size): seconds for size, seconds in found[key].items()} for key in ("gathers", "reductions")
    )
    return fit_exchange(gathers, reductions, world)
