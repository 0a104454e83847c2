"""python -m benchmarks.step [--json] [--quick] [--device cpu|cuda] [--config FILE.yaml] [--keep FILE]

A pretraining step as `hssl pretrain` takes it, and its peers: samples/s, achieved FLOP/s beside the machine's
matrix products, memory, and where the time goes. No Ray. The arms are `step_arms`, each a process of its own;
they take turns of some steps while the others stand still. Tables, or with --json the whole record, go to
standard output, progress to standard error; ends with status 1 if something that must be reached was measured
and is not. The committed record and the section of docs/speed.md are made, on a machine that does nothing
else, by

    python -m benchmarks.step --json > benchmarks/results/step.json
    python -m benchmarks.step_table

more than half an hour on two cores. With --keep a run that was stopped goes on behind its last round. On a
GPU: `benchmarks/gpu.sh`. --quick takes a tiny network and proves nothing but that it runs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from benchmarks import peers
from benchmarks.measuring import end_cleanly_when_asked, gpu_machine, load_average, machine
from benchmarks.pieces import OtherSettingsError, Piece, Pieces
from benchmarks.step_arms import budgets
from benchmarks.step_data import build_workload, learning
from benchmarks.step_summary import judge, summarise
from benchmarks.step_table import tables
from benchmarks.step_turns import ArmSpec, in_turns
from hssl_dist.config.loading import load_config
from hssl_dist.config.pretrain import PretrainConfig, SamplingConfig
from hssl_dist.console import Console
from hssl_dist.errors import HsslError
from hssl_dist.jobs.lineage import code_version
from tests.tiny_network import NETWORK

if TYPE_CHECKING:
    from collections.abc import Sequence

ROUNDS, TURN_S = 5, 4.0
QUICK_ROUNDS, QUICK_TURN_S = 2, 0.3
TINY = {
    "global_batch": 4,
    "sampling": SamplingConfig(patch_size=(4, 16, 16), block_size=2),
    "network": NETWORK,
}
"""What --quick puts into the config."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, judge and print; the process's exit status."""
    options = _parser().parse_args(arguments)
    end_cleanly_when_asked()
    console = Console()
    try:
        record = measure_all(options, console)
    except (HsslError, OtherSettingsError) as error:
        console.say(f"error: {error}")
        return 2
    sys.stdout.write(json.dumps(record, indent=1) + "\n" if options.json else tables(record))
    return int(any(criterion["passed"] is False for criterion in record["criteria"]))


def measure_all(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The whole record, as it is written to JSON."""
    started, load_before = datetime.now(UTC), load_average()
    config = _config(options)
    turn_s = QUICK_TURN_S if options.quick else options.turn_s
    rounds = QUICK_ROUNDS if options.quick else options.rounds
    settings = {
        "config": learning(config),
        "device": options.device,
        "rounds": rounds,
        "turn_s": turn_s,
        "quick": options.quick,
        "only": options.only,
    }
    pieces = Pieces(options.keep, settings)
    until_s = time.monotonic() + (options.time_s or math.inf)
    measured = []
    with tempfile.TemporaryDirectory(prefix="hssl-benchmark-") as folder:
        console.say("volumes")
        build_workload(folder, config)
        arms = budgets(config, folder, options.device, quick=options.quick, turn_s=turn_s)
        for budget, specs in arms.items():
            if chosen := _chosen(budget, specs, options.only):
                console.say(f"{budget}: {len(chosen)} arms")
                measured.append(_measure(budget, chosen, rounds, console, pieces.growing(budget), until_s))
    summaries = [summarise(budget) for budget in measured]
    return {
        "command": "python -m benchmarks.step " + " ".join(_told(options)),
        "started": started.isoformat(timespec="seconds"),
        "minutes": round((datetime.now(UTC) - started).total_seconds() / 60, 1),
        "code": code_version(),
        "peers": peers.versions() | _version_of("monai") | _version_of("dynamic_network_architectures"),
        "machine": machine() if options.device == "cpu" else gpu_machine(),
        "load_average": {"before": load_before, "after": load_average()},
        "settings": settings,
        "budgets": summaries,
        "criteria": [asdict(criterion) for criterion in judge(summaries, options.device, options.quick)],
    }


def _chosen(budget: str, specs: list[ArmSpec], only: list[str] | None) -> list[ArmSpec]:
    """The arms whose `budget: name$` has one of the texts, and the ceiling beside them."""
    wanted = [spec for spec in specs if any(text in f"{budget}: {spec.name}$" for text in only or [""])]
    return [spec for spec in specs if wanted and (spec in wanted or spec.kind == "matmul")]


def _measure(
    budget: str,
    specs: list[ArmSpec],
    rounds: int,
    console: Console,
    kept: Piece,
    until_s: float,
) -> dict[str, Any]:
    outcomes = in_turns(specs, rounds, console.say, kept, until_s)
    arms = []
    for spec in specs:
        arm: dict[str, Any] = {"name": spec.name}
        arm |= {
            key: getattr(spec, key)
            for key in ("kind", "stage", "threads", "ranks", "workers", "options", "settings")
        }
        arm |= outcomes[spec.name]
        arms.append(arm)
    return {"budget": budget, "arms": arms}


def _config(options: argparse.Namespace) -> PretrainConfig:
    words = ["--config", options.config] if options.config else []
    config = load_config(PretrainConfig, "benchmark", words)
    return config.model_copy(update=TINY) if options.quick else config


def _told(options: argparse.Namespace) -> list[str]:
    words = [f"--{flag}" for flag in ("json", "quick") if getattr(options, flag)]
    words += [] if options.device == "cpu" else ["--device", options.device]
    words += ["--config", options.config] if options.config else []
    words += ["--only", *map(repr, options.only)] if options.only else []
    words += [] if options.time_s is None else ["--time-s", f"{options.time_s:g}"]
    words += ["--rounds", str(options.rounds)] if options.rounds != ROUNDS else []
    return words + (["--turn-s", f"{options.turn_s:g}"] if options.turn_s != TURN_S else [])


def _version_of(name: str) -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return {name: version(name)}
    except PackageNotFoundError:
        return {}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description="Measure a training step.")
    parser.add_argument("--json", action="store_true", help="print the record instead of tables")
    parser.add_argument("--quick", action="store_true", help="a tiny network, a few arms, short turns")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--config", help="a config of `hssl pretrain` (default: its defaults)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each arm (default {ROUNDS})")
    parser.add_argument("--turn-s", type=float, default=TURN_S, help=f"length of a turn (default {TURN_S:g})")
    parser.add_argument("--time-s", type=float, help="begin no arm and no round after so many seconds")
    parser.add_argument(
        "--only", nargs="+", help="arms such as '1 core: ours', or 'loop$' for those of which it is the end"
    )
    parser.add_argument("--keep", help="a file for what is measured, which a stopped run goes on from")
    return parser


if __name__ == "__main__":
    sys.exit(main())
