"""python -m benchmarks.loader [--quick] [--json]

Our loader beside zarr-python's default pipeline, MONAI's CacheDataset and PersistentDataset and nnU-Net's
storage scheme: patches per second, processor time, memory, start-up, bytes on disk and read, from local disk
and from a real S3 server; and what must be reached. Each measurement is a process of its own, arms take turns
over rounds, every arm's patches are compared with the reference reader's, byte for byte. Markdown tables, or
with --json the whole record, go to standard output; progress to standard error. Ends with status 1 if
something that must be reached was measured and is not.

The committed record and the tables of docs/data.md are made by

    python -m benchmarks.loader --json > benchmarks/results/loader.json
    python -m benchmarks.loader_table

A full run takes 17 minutes on two quiet cores, 3 GB of disk below TMPDIR and up to 8 GB of memory;
--quick stays under a minute. `benchmarks.loader_peers` says how the peers are set up.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.loader_criteria import judge
from benchmarks.loader_local import FULL, QUICK, measure_local
from benchmarks.loader_s3 import measure_s3
from benchmarks.loader_table import tables
from benchmarks.measuring import end_cleanly_when_asked, load_average, machine
from hssl_dist.console import Console
from hssl_dist.jobs.lineage import code_version

if TYPE_CHECKING:
    from collections.abc import Sequence

PEERS = ("monai", "nnunetv2", "batchgenerators", "blosc2", "zarr", "s3fs")
CORES = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, judge and print; the process's exit status."""
    options = _parser().parse_args(arguments)
    end_cleanly_when_asked()
    record = measure_all(options.quick, Console())
    sys.stdout.write(json.dumps(record, indent=1) + "\n" if options.json else tables(record))
    return int(any(criterion["passed"] is False for criterion in record["criteria"]))


def measure_all(quick: bool, console: Console) -> dict[str, Any]:
    """The whole record, as it is written to JSON."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    started, load_before = datetime.now(UTC), load_average()
    plan = QUICK if quick else FULL
    with tempfile.TemporaryDirectory(prefix="hssl-loader-") as scratch:
        local = measure_local(plan, Path(scratch), console)
        s3 = measure_s3(plan.remote, plan.rounds, plan.warm_s, Path(scratch), console)
    return {
        "command": f"python -m benchmarks.loader{' --quick' if quick else ''} --json",
        "started": started.isoformat(timespec="seconds"),
        "minutes": round((datetime.now(UTC) - started).total_seconds() / 60, 1),
        "code": code_version(),
        "peers": {name: version(name) for name in PEERS},
        "machine": {**machine(), "cores": CORES},
        "load_average": {"before": load_before, "after": load_average()},
        "rounds": plan.rounds,
        "criteria": [asdict(criterion) for criterion in judge(local, s3, quick)],
        "local": local,
        "s3": s3,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description="Measure the loader.")
    parser.add_argument("--quick", action="store_true", help="small volumes, one round")
    parser.add_argument("--json", action="store_true", help="print the record instead of tables")
    return parser


if __name__ == "__main__":
    sys.exit(main())
