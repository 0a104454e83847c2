"""Each setting of `acceleration` on and off: processor time and peak memory of a pretraining step on the CPU.

    python -m benchmarks.acceleration [--json] [--quick] [--regions 8] [--rounds 3] [--steps 2]
        [--settings "all off" compile ...]

The default network and objective, on made-up regions, one thread; forward, backward, clip and update of each
stage, without reading. Every measurement is a fresh process, and the settings take turns. `ms` are of
processor time, medians of the rounds; `MiB` is the growth of the peak resident set over what the process held
before there was a network (for `compile` the compiler's own memory is in it); `build_s` are the seconds up to
the end of the first step, compiling included. The settings of ranks are measured on two gloo ranks of this
machine, which share its cores and send nothing over a network: that they lose nothing is all that can be seen
here. --quick takes a tiny network and shows only that it runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.measuring import CannotRun, load_average, machine, measure
from hssl_dist.config.pretrain import PretrainConfig, SamplingConfig
from hssl_dist.memory import freed_memory_kept
from hssl_dist.networks.pretraining import Stage, build_pretraining_network
from hssl_dist.sampling.loader import Regions
from hssl_dist.training.acceleration import accelerated, distributed
from hssl_dist.training.objective import Samples
from hssl_dist.training.optimiser import Optimiser
from hssl_dist.training.step import backward
from tests.distributed.ranks import run_ranks
from tests.tiny_network import NETWORK

CPU = torch.device("cpu")
STAGES: tuple[Stage, ...] = ("encoder", "decoder")
OFF: dict[str, Any] = {"fused_optimiser": False, "keep_freed_memory": False}
ARMS: dict[str, dict[str, Any]] = {
    "all off": {},
    "fused_optimiser": {"fused_optimiser": True},
    "keep_freed_memory": {"keep_freed_memory": True},
    "channels_last": {"channels_last": True},
    "recompute_stages: 1": {"recompute_stages": 1},
    "recompute_stages: 2": {"recompute_stages": 2},
    "recompute_stages: all": {"recompute_stages": 16},
    "compile": {"compile": True},
    "precision: bfloat16": {"precision": "bfloat16"},
    "precision: float16": {"precision": "float16"},
}
RANK_ARMS: dict[str, dict[str, Any]] = {
    "one bucket, views": {},
    "one bucket, copies": {"bucket_views": False},
    "buckets of 1 MiB": {"bucket_mb": 1.0},
}
RANKS = 2
_MARGIN = 1.5


def configured(settings: dict[str, Any], regions: int, *, quick: bool) -> PretrainConfig:
    """The default pretraining, with so many regions in its global batch."""
    values: dict[str, Any] = {"global_batch": regions}
    if "precision" in settings:
        values["precision"] = settings["precision"]
    settings = {key: value for key, value in settings.items() if key != "precision"}
    if quick:
        values |= {
            "network": NETWORK,
            "sampling": SamplingConfig(patch_size=(4, 8, 8), block_size=2),
        }
    return PretrainConfig.model_validate(values | {"acceleration": OFF | settings})


def made_up(config: PretrainConfig, count: int) -> Samples:
    """So many regions of noise, of two tasks."""
    size = [round(_MARGIN * length) for length in config.sampling.patch_size]
    numbers = torch.randint(-4096, 4096, (count, 1, *size), dtype=torch.int16)
    places = torch.arange(count)
    return Samples(
        Regions(numbers, torch.full((count,), 2.0**-12)),
        tasks=places % 2,
        groups=places % 2,
        numbers=places,
        relatives=places,
        seeds=tuple(range(count)),
    )


@contextmanager
def stepping(config: PretrainConfig, stage: Stage, count: int) -> Iterator[Callable[[], None]]:
    """Inside, one step of a stage on this process's `count` regions, again and again, as the config says.

    The first one has been taken, so that all is compiled.
    """
    torch.manual_seed(0)
    network = build_pretraining_network(config.network, config.objective, 2, 2)
    network.set_stage(stage)
    settings, samples = config.acceleration, made_up(config, count)
    optimiser = Optimiser(network, weight_decay=1e-4, fused=settings.fused_optimiser)

    def step() -> None:
        optimiser.zero_grad()
        backward(stage, samples, network, wrapped, config)
        optimiser.clip(5.0)
        optimiser.step(1e-3)

    with freed_memory_kept(settings.keep_freed_memory), accelerated(network, settings, CPU):
        wrapped = distributed(network, settings, CPU)
        step()
        yield step


def build_steps(
    settings: dict[str, Any], stage: Stage, regions: int, steps: int, quick: bool
) -> Callable[[], dict[str, float]]:
    """For `measure`: some steps, and what comes before them."""
    config = configured(settings, regions, quick=quick)

    def work() -> dict[str, float]:
        begun_s = time.perf_counter()
        with stepping(config, stage, regions) as step:
            build_s = time.perf_counter() - begun_s
            taken = [_milliseconds(step) for _ in range(steps)]
        return {"ms": statistics.median(taken), "build_s": build_s}

    return work


def _milliseconds(step: Callable[[], None]) -> float:
    start_s = time.process_time()
    step()
    return 1e3 * (time.process_time() - start_s)


def measure_arm(
    settings: dict[str, Any], stage: Stage, regions: int, steps: int, quick: bool
) -> dict[str, float]:
    """Milliseconds and MiB of a step in a process of its own."""
    found = measure(build_steps, settings, stage, regions, steps, quick)
    if isinstance(found, CannotRun):
        raise MemoryError(found.reason)
    return {**found.result, "mib": found.growth_mib}


def measure_ranks(settings: dict[str, Any], regions: int, steps: int, quick: bool) -> dict[str, float]:
    """Milliseconds of processor time of a rank's step of the decoder stage, on two ranks."""
    by_rank = run_ranks(_rank_steps, RANKS, settings, regions, steps, quick, timeout_s=600)
    return {"ms": statistics.mean(by_rank)}


def _rank_steps(settings: dict[str, Any], regions: int, steps: int, quick: bool) -> float:
    config = configured(settings, regions, quick=quick)
    with stepping(config, "decoder", regions // RANKS) as step:
        return statistics.median(_milliseconds(step) for _ in range(steps))


def record(
    regions: int, rounds: int, steps: int, *, quick: bool, chosen: Collection[str] = ()
) -> dict[str, Any]:
    """Medians of all arms, or of the chosen ones."""
    before = load_average()
    arms = {name: settings for name, settings in ARMS.items() if not chosen or name in chosen}
    found: dict[str, dict[str, list[dict[str, float]]]] = {
        name: {stage: [] for stage in STAGES} for name in arms
    }
    of_ranks = {name: settings for name, settings in RANK_ARMS.items() if not chosen or name in chosen}
    ranks: dict[str, list[dict[str, float]]] = {name: [] for name in of_ranks}
    for _ in range(rounds):
        for name, settings in arms.items():
            for stage in STAGES:
                found[name][stage].append(measure_arm(settings, stage, regions, steps, quick))
                sys.stderr.write(f"{name}, {stage}: {found[name][stage][-1]}\n")
        for name, settings in of_ranks.items():
            ranks[name].append(measure_ranks(settings, regions, steps, quick))
    return {
        "machine": machine(),
        "load": [before, load_average()],
        "regions": regions,
        "rounds": rounds,
        "steps": steps,
        "quick": quick,
        "settings": {
            name: {stage: medians(each) for stage, each in stages.items()} for name, stages in found.items()
        },
        "ranks": {name: medians(each) for name, each in ranks.items()},
    }


def medians(found: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure over the rounds."""
    return {key: round(statistics.median(each[key] for each in found), 1) for key in found[0]}


def table(made: dict[str, Any]) -> str:
    """The record for a person."""
    lines = ["| setting | encoder, ms | MiB | decoder, ms | MiB |", "|---|---|---|---|---|"]
    for name, stages in made["settings"].items():
        cells = [f"{stages[stage][key]:.0f}" for stage in STAGES for key in ("ms", "mib")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", f"| {RANKS} ranks | decoder, ms |", "|---|---|"]
    lines += [f"| {name} | {each['ms']:.0f} |" for name, each in made["ranks"].items()]
    return "\n".join(lines) + "\n"


def flags(described: str | None) -> argparse.ArgumentParser:
    """Those of a benchmark that takes steps in rounds."""
    parser = argparse.ArgumentParser(
        description=described, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    return parser


def main() -> None:
    parser = flags(__doc__)
    parser.add_argument("--regions", type=int, default=8)
    parser.add_argument("--settings", nargs="+", default=[], choices=[*ARMS, *RANK_ARMS])
    arguments = parser.parse_args()
    sizes = (4, 1, 1) if arguments.quick else (arguments.regions, arguments.rounds, arguments.steps)
    made = record(*sizes, quick=arguments.quick, chosen=arguments.settings)
    sys.stdout.write(json.dumps(made, indent=2) + "\n" if arguments.json else table(made))


if __name__ == "__main__":
    main()
