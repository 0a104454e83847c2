"""python -m benchmarks.scaling [--json] [--quick] [--keep FILE] [--config FILE.yaml] [--global-batch 8]

A model of a step's time and memory per rank, fitted on measured pieces and held against measured runs of 1, 2
and 4 ranks on this machine; and what the same model says of 1 to 1,024 GPUs and 100,000 volumes under the
assumptions of benchmarks/scaling_assumptions.yaml. No Ray. Tables, or with --json the record of the
measurements, go to standard output, progress to standard error. The committed record and the tables of
docs/scaling.md are made, on a machine that does nothing else, by

    python -m benchmarks.scaling --json > benchmarks/results/scaling.json
    python -m benchmarks.scaling_table

about three minutes on two cores. With --keep a run that was stopped goes on behind its last round.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.measuring import end_cleanly_when_asked, load_average, machine
from benchmarks.pieces import OtherSettingsError, Pieces
from benchmarks.scaling_cost import sample_cost
from benchmarks.scaling_measure import (
    compute_line,
    exchange_of,
    measure_exchanges,
    measure_runs,
    memory_line,
    slowdown,
    specs,
)
from benchmarks.scaling_model import Network, core_share, predict_memory, predict_step
from benchmarks.scaling_table import measured_tables, plan_tables
from benchmarks.step import TINY
from benchmarks.step_data import build_workload, learning
from hssl_dist.config.loading import load_config
from hssl_dist.config.pretrain import PretrainConfig
from hssl_dist.console import Console
from hssl_dist.errors import HsslError
from hssl_dist.jobs.lineage import code_version

if TYPE_CHECKING:
    from collections.abc import Sequence

WORLDS = [1, 2, 4]
ROUNDS, TURN_S = 5, 3.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, predict and print; the process's exit status."""
    options = _parser().parse_args(arguments)
    end_cleanly_when_asked()
    console = Console()
    try:
        record = measure_all(options, console)
    except (HsslError, OtherSettingsError, RuntimeError) as error:
        console.say(f"error: {error}")
        return 2
    if options.json:
        sys.stdout.write(json.dumps(record, indent=1) + "\n")
    else:
        sys.stdout.write(f"{measured_tables(record)}\n{plan_tables()}")
    return 0


def measure_all(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The whole record, as it is written to JSON."""
    started, load_before = datetime.now(UTC), load_average()
    words = ["--config", options.config] if options.config else []
    config = load_config(PretrainConfig, "benchmark", words)
    config = config.model_copy(update=TINY if options.quick else {"global_batch": options.global_batch})
    worlds = [world for world in WORLDS if world <= (2 if options.quick else max(WORLDS))]
    rounds, turn_s = (2, 0.2) if options.quick else (options.rounds, TURN_S)
    settings = {
        "config": learning(config),
        "worlds": worlds,
        "rounds": rounds,
        "turn_s": turn_s,
        "quick": options.quick,
    }
    pieces = Pieces(options.keep, settings)
    exchanges = {}
    for world in worlds[1:]:
        console.say(f"exchanges among {world} ranks")
        exchanges[str(world)] = pieces.get(f"exchanges {world}", partial(measure_exchanges, world))
    with tempfile.TemporaryDirectory(prefix="hssl-benchmark-") as folder:
        console.say("volumes")
        build_workload(folder, config)
        arms = specs(config, folder, worlds, turn_s)
        runs = measure_runs(arms, rounds, console.say, pieces.growing("runs"))
    return {
        "command": "python -m benchmarks.scaling" + (" --quick" if options.quick else "") + " --json",
        "started": started.isoformat(timespec="seconds"),
        "minutes": round((datetime.now(UTC) - started).total_seconds() / 60, 1),
        "code": code_version(),
        "machine": machine() | {"cores": len(os.sched_getaffinity(0))},
        "load_average": {"before": load_before, "after": load_average()},
        "settings": settings,
        "runs": runs,
        "exchanges": exchanges,
        **check(config, worlds, runs, exchanges, len(os.sched_getaffinity(0))),
    }


def check(
    config: PretrainConfig, worlds: list[int], runs: dict[str, Any], exchanges: dict[str, Any], cores: int
) -> dict[str, Any]:
    """The fitted pieces, and each world's prediction beside its run."""
    compute, memory, shared = compute_line(runs), memory_line(runs), slowdown(runs)
    network = Network(sample_cost(config, "encoder").parameters, config.objective.projection_size)
    copies = 0 if config.acceleration.bucket_views else 1
    rows = []
    for world in worlds:
        exchange = exchange_of(
            exchanges[str(world)] if world > 1 else exchanges[str(worlds[1])], max(world, 2)
        )
        step = predict_step(
            compute,
            exchange,
            network,
            world_size=world,
            global_batch=config.global_batch,
            share=core_share(world, cores, shared),
            hidden_share=0.5 if world < cores else 0.0,  # a core that is left can average meanwhile
        )
        mib = predict_memory(
            memory, network, world_size=world, global_batch=config.global_batch, gradient_copies=copies
        )
        run = runs[f"W = {world}"]
        rows.append(
            {
                "world": world,
                "predicted_s": step.whole_s,
                "compute_s": step.compute_s,
                "gather_s": step.gather_s + step.small_s,
                "gradients_s": step.gradients_s,
                "measured_s": run["step_s"],
                "error": step.whole_s / run["step_s"] - 1.0,
                "predicted_mib": mib,
                "measured_mib": run["peak_mib"],
                "memory_error": mib / run["peak_mib"] - 1.0,
            }
        )
    fits = {
        "fixed_s": compute.fixed,
        "s_per_sample": compute.per_one,
        "fixed_mib": memory.fixed,
        "mib_per_sample": memory.per_one,
        "slowdown": shared,
        "exchanges": {
            world: {"latency_s": fit.latency_s, "bytes_per_s": fit.bytes_per_s}
            for world, found in exchanges.items()
            for fit in [exchange_of(found, int(world))]
        },
    }
    return {"fits": fits, "checks": rows}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description="Model a step's scaling."
    )
    parser.add_argument("--json", action="store_true", help="print the record instead of tables")
    parser.add_argument("--quick", action="store_true", help="a tiny network, two ranks at most")
    parser.add_argument("--config", help="a config of `hssl pretrain` (default: its defaults)")
    parser.add_argument("--global-batch", type=int, default=8, help="of all ranks together (default 8)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each run (default {ROUNDS})")
    parser.add_argument("--keep", help="a file for what is measured, which a stopped run goes on from")
    return parser


if __name__ == "__main__":
    sys.exit(main())
