"""python -m benchmarks.loss [--quick] [--json]

The image-level loss beside the textbook's, lightly's, open_clip's and pytorch-metric-learning's: exactness
of the gradient, memory, processor time, bytes on the wire, share of a pretraining step, and what must be
reached. Markdown tables, or with --json the whole record, go to standard output; progress to standard error.
Ends with status 1 if something that must be reached was measured and is not.

The committed record and the tables of docs/loss.md are made by

    python -m benchmarks.loss --json > benchmarks/results/loss.json
    python -m benchmarks.loss_table

A full run takes the better part of an hour on two cores and up to 16 GiB; --quick stays under a minute on
two idle cores. `benchmarks.peers` says how the peers' losses come in; those not installed are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from benchmarks import gradients_micro, peers
from benchmarks.gradients import check_all
from benchmarks.loss_criteria import judge
from benchmarks.loss_scaling import (
    EMBEDDING_SIZE,
    QUICK_SIZES,
    QUICK_WIRE_ROWS,
    SIZES,
    WIRE_ROWS,
    WORLD_SIZES,
    measure_scaling,
    measure_wire,
)
from benchmarks.loss_share import measure_share
from benchmarks.loss_table import tables
from benchmarks.measuring import load_average, machine
from hssl_dist.console import Console
from hssl_dist.jobs.lineage import code_version

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, judge and print; the process's exit status."""
    options = _parser().parse_args(arguments)
    console = Console()
    for name in peers.missing():
        console.warn(f"{name} is not installed and left out; `make setup` installs it")
    record = measure_all(options.quick, options.repetitions, options.memory_limit_gib, console)
    sys.stdout.write(json.dumps(record, indent=1) + "\n" if options.json else tables(record))
    return int(any(criterion["passed"] is False for criterion in record["criteria"]))


def measure_all(quick: bool, repetitions: int, memory_limit_gib: float, console: Console) -> dict[str, Any]:
    """The whole record, as it is written to JSON."""
    started, load_before = datetime.now(UTC), load_average()
    repetitions = 1 if quick else repetitions
    console.say("gradients")
    gradients = check_all(quick) + gradients_micro.check_all(quick)
    console.say("bytes on the wire")
    wires = measure_wire(2, QUICK_WIRE_ROWS, repetitions) if quick else []
    for world_size in () if quick else WORLD_SIZES:
        wires += measure_wire(world_size, WIRE_ROWS, repetitions)
    console.say("share of a step")
    share = measure_share(repetitions)
    sizes = QUICK_SIZES if quick else SIZES
    scalings = measure_scaling(sizes, repetitions, memory_limit_gib * 1024, console)
    return {
        "command": f"python -m benchmarks.loss{' --quick' if quick else ''} --json",
        "started": started.isoformat(timespec="seconds"),
        "minutes": round((datetime.now(UTC) - started).total_seconds() / 60, 1),
        "code": code_version(),
        "peers": peers.versions(),
        "machine": machine(),
        "load_average": {"before": load_before, "after": load_average()},
        "embedding_size": EMBEDDING_SIZE,
        "repetitions": repetitions,
        "memory_limit_gib": memory_limit_gib,
        "criteria": [asdict(criterion) for criterion in judge(gradients, scalings, wires, share)],
        "gradients": [{**asdict(check), "exact": check.exact} for check in gradients],
        "scaling": [asdict(scaling) for scaling in scalings],
        "wire": [asdict(wire) for wire in wires],
        "share": asdict(share),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loss", description="Measure the loss.")
    parser.add_argument("--quick", action="store_true", help="small sizes, at most two ranks, one repetition")
    parser.add_argument("--json", action="store_true", help="print the record instead of tables")
    parser.add_argument("--repetitions", type=int, default=5, help="of each measurement (default 5)")
    parser.add_argument(
        "--memory-limit-gib",
        type=float,
        default=16.0,
        help="do not run what is predicted to grow beyond this (default 16)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
