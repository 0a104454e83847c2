"""What checkpoints cost the training thread, in a real small pretraining on this machine.

    python -m benchmarks.checkpoint --json > benchmarks/results/checkpoint.json

Both stages are trained twice per round, on volumes made up in a store on local disk: without checkpoints, and
with one every few steps. The difference of the steps' mean times, times the steps between checkpoints, is
what one checkpoint costs the training thread: the copy, and what the writing thread takes from it. So that it
stands out of the noise there are many more checkpoints than anyone would have; `share` is that cost over the
100 steps of the default interval. `copy_ms` is the copy alone, `write_ms` the whole write on its own thread.
Stage ends, where training waits for the write, are left out. Medians over the rounds, with the smallest and
the largest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.callbacks import Silent
from benchmarks.loader_data import generate
from benchmarks.measuring import gpu_machine, load_average, machine
from hssl_dist.config.network import NetworkConfig
from hssl_dist.config.pretrain import CheckpointConfig, PretrainConfig, SamplingConfig, StageConfig
from hssl_dist.records import Shape
from hssl_dist.store import open_reader, read_manifests
from hssl_dist.training.checkpoint import Checkpoint, CheckpointStore, Snapshot
from hssl_dist.training.loop import run_pretraining, stage_steps

BOUND = 0.02
"""Of the training thread's time, at the default interval."""
INTERVAL = CheckpointConfig().every_steps
_COPIES = 9


@dataclass(frozen=True)
class Size:
    """How large the run is; `between` is the steps from one checkpoint to the next."""

    steps: int = 42
    between: int = 4
    global_batch: int = 8
    patch_size: Shape = (16, 48, 48)
    network: NetworkConfig = field(default_factory=NetworkConfig)

    def config(self, every_steps: int) -> PretrainConfig:
        """The run, both stages of equal length."""
        stage = StageConfig(steps=self.steps, warmup_steps=1)
        return PretrainConfig(
            name="benchmark",
            global_batch=self.global_batch,
            sampling=SamplingConfig(patch_size=self.patch_size, block_size=4),
            network=self.network,
            encoder=stage,
            decoder=stage.model_copy(update={"encoder_rate": 0.3}),
            checkpoint=CheckpointConfig(every_steps=every_steps),
        )


@dataclass
class Clock(Silent):
    """Callbacks that note when each step is done."""

    done_s: dict[int, float] = field(default_factory=dict)

    def on_step(self, step: int) -> None:
        """Note it."""
        self.done_s[step] = time.perf_counter()

    def on_warning(self, step: int, text: str) -> None:  # noqa: ARG002
        """Nothing that is measured may have gone wrong with the checkpoints."""
        if "checkpoint" in text:
            raise RuntimeError(text)

    def step_s(self, first: int, last: int) -> float:
        """Mean time of the steps of a stage after its second; what follows a step counts to the next."""
        return (self.done_s[last] - self.done_s[first + 2]) / (last - first - 2)


class TimedStore(CheckpointStore):
    """A store that notes how long its writes take, and the last snapshot of each stage."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.write_ms: dict[int, float] = {}
        self.snapshots: dict[str, Snapshot] = {}

    def write(self, snapshot: Snapshot, *, series: str = "", score: float | None = None) -> str:
        """See `CheckpointStore.write`."""
        start_s = time.perf_counter()
        url = super().write(snapshot, series=series, score=score)
        self.write_ms[snapshot.step] = (time.perf_counter() - start_s) * 1e3
        self.snapshots[series] = snapshot
        return url


def measure(folder: Path, size: Size, rounds: int, device: str = "cpu") -> dict[str, Any]:
    """The figures of both stages."""
    generate(str(folder), (32, 96, 96), 4)
    config = size.config(size.between)
    found: dict[str, list[dict[str, float]]] = {stage: [] for stage in stage_steps(config)}
    for number in range(rounds):
        # The one that goes first alternates: a machine that slows down must not favour either.
        order = (10 * size.steps, size.between) if number % 2 == 0 else (size.between, 10 * size.steps)
        runs = {every: _train(folder, f"{number}-{every}", size.config(every), device) for every in order}
        (without, _), (with_them, store) = runs[10 * size.steps], runs[size.between]
        for stage, (first, last) in stage_steps(config).items():
            plain_s, saving_s = (clock.step_s(first, last) for clock in (without, with_them))
            # Checkpoints whose copy and write are within the steps that are timed.
            saves = len([step for step in store.write_ms if first + 2 <= step < last])
            cost_s = (saving_s - plain_s) * (last - first - 2) / saves
            writes = [taken for step, taken in store.write_ms.items() if first < step < last]
            found[stage].append(
                {
                    "step_ms": plain_s * 1e3,
                    "cost_ms": cost_s * 1e3,
                    "share": cost_s / (INTERVAL * plain_s),
                    "write_ms": statistics.median(writes),
                    "copy_ms": _copy_ms(store.snapshots[stage]),
                    "size_mib": _size_mib(store.snapshots[stage]),
                }
            )
    stages = {stage: _medians(rows) for stage, rows in found.items()}
    worst = max(stage["share"]["median"] for stage in stages.values())
    return {"stages": stages, "share": worst, "bound": BOUND, "passed": worst <= BOUND}


def _train(folder: Path, name: str, config: PretrainConfig, device: str) -> tuple[Clock, TimedStore]:
    clock, store, url = Clock(), TimedStore(str(folder / "runs" / name)), str(folder / "store")
    run_pretraining(config, read_manifests(url), open_reader(url), store, clock, torch.device(device))
    return clock, store


def _copy_ms(snapshot: Snapshot) -> float:
    """The median time of copying what a snapshot holds once more."""
    state, taken = json.loads(snapshot.state), []
    checkpoint = Checkpoint(snapshot.step, snapshot.model, snapshot.optimizer, state)
    for _ in range(_COPIES):
        start_s = time.perf_counter()
        Snapshot.of(checkpoint)
        taken.append((time.perf_counter() - start_s) * 1e3)
    return statistics.median(taken)


def _size_mib(snapshot: Snapshot) -> float:
    return sum(len(data) for _, data in snapshot.contents()) / (1 << 20)


def _medians(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {
        key: {
            "median": round(statistics.median(row[key] for row in rows), 5),
            "smallest": round(min(row[key] for row in rows), 5),
            "largest": round(max(row[key] for row in rows), 5),
        }
        for key in rows[0]
    }


def table(result: dict[str, Any]) -> str:
    """The figures for people."""
    lines = []
    for stage, figures in result["stages"].items():
        value = {key: row["median"] for key, row in figures.items()}
        lines.append(
            f"{stage}: step {value['step_ms']:.0f} ms; a checkpoint of {value['size_mib']:.1f} MiB costs "
            f"{value['cost_ms']:.1f} ms (the copy {value['copy_ms']:.1f} ms), written in "
            f"{value['write_ms']:.0f} ms; {value['share']:.2%} of {INTERVAL} steps"
        )
    verdict = "reached" if result["passed"] else "missed"
    return "\n".join([*lines, f"at most {result['bound']:.0%} of the training thread: {verdict}"])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="small volumes, so that it only shows it runs")
    parser.add_argument("--steps", type=int, default=Size.steps, help="of each stage, at least 10")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    size = Size(steps=flags.steps)
    if flags.quick:
        size = Size(steps=10, global_batch=2, patch_size=(4, 16, 16))
    before = load_average()
    with tempfile.TemporaryDirectory(prefix="hssl-benchmark-") as folder:
        result = measure(Path(folder), size, flags.rounds, flags.device)
    result |= {
        "rounds": flags.rounds,
        "machine": machine() if flags.device == "cpu" else gpu_machine(),
        "load_average": {"before": before, "after": load_average()},
    }
    sys.stdout.write((json.dumps(result, indent=2) if flags.json else table(result)) + "\n")


if __name__ == "__main__":
    main()
