"""python -m benchmarks.preprocess [--quick] [--json]

Preprocessing beside MONAI's transforms and nnU-Net's resampling and storage: CPU seconds, memory, difference,
bytes; how it scales with Ray's CPUs; and what must be reached. Every measurement is a fresh process with one
thread; arms take turns over rounds, medians count.

- `chain` is all that is done to a case, on the file's own grid or resampled linearly, where our numbers and
  MONAI's are equal to the stated error. The target, twice the speed, is judged on MONAI's *equivalent* chain,
  which finds crop, statistics and grid as ours does and votes for labels as ours does; beside it stands the
  *spared* one, which is given them (`benchmarks.preprocess_monai`).
- `resampling` is our kernels beside nnU-Net's of order 3 on the same crops in memory.
- `sizes` is the same prepared images in both stores.
- `memory` is the peak of a worker on the largest volume.
- `scaling` is the job's own tasks on a warm Ray with one CPU and with two.

Markdown tables, or with --json the whole record, go to standard output; progress to standard error. Ends with
status 1 if something that must be reached was measured and is not. The committed record and the tables of
docs/preprocessing.md are made by

    python -m benchmarks.preprocess --json > benchmarks/results/preprocess.json
    python -m benchmarks.preprocess_table

A full run takes about ten minutes on two quiet cores; --quick is one small volume, once. Generated volumes
are kept in hssl-generated below TMPDIR for the next run.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import preprocess_ways as ways
from benchmarks.measuring import Measurement, end_cleanly_when_asked, load_average, machine, measure
from benchmarks.preprocess_criteria import judge
from benchmarks.preprocess_memory import peak_memory
from benchmarks.preprocess_scaling import scaling
from benchmarks.preprocess_table import tables
from benchmarks.preprocess_volumes import Volumes, done, generated, real
from hssl_dist.console import Console
from hssl_dist.imaging import load_case
from hssl_dist.jobs.lineage import code_version

SCALED = {"hippocampus": 100, "generated 256x256x256": 16}
"""Many small cases and a few large ones, and how often each is stored."""

SCALING_ROUNDS = 3

PEERS = ("monai", "nnunetv2", "blosc2", "scikit-image", "isal", "zarr")
_CUBIC_VOXELS = 1 << 26
"""nnU-Net's cubic resampling takes minutes for more."""

Record = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, judge and print; the process's exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.preprocess", description="Measure preprocessing."
    )
    parser.add_argument("--quick", action="store_true", help="one small volume, once")
    parser.add_argument("--json", action="store_true", help="print the record instead of tables")
    options = parser.parse_args(arguments)
    end_cleanly_when_asked()
    record = measure_all(options.quick, Console())
    sys.stdout.write(json.dumps(record, indent=1) + "\n" if options.json else tables(record))
    return int(any(criterion["passed"] is False for criterion in record["criteria"]))


def measure_all(quick: bool, console: Console) -> Record:
    """The whole record, as it is written to JSON."""
    started, load_before = datetime.now(UTC), load_average()
    record = measured(_quick() if quick else _full(), () if quick else tuple(SCALED), console)
    return {
        "command": f"python -m benchmarks.preprocess{' --quick' if quick else ''} --json",
        "started": started.isoformat(timespec="seconds"),
        "minutes": round((datetime.now(UTC) - started).total_seconds() / 60, 1),
        "code": code_version(),
        "peers": {name: version(name) for name in PEERS},
        "machine": machine(),
        "load_average": {"before": load_before, "after": load_average()},
        "criteria": [asdict(criterion) for criterion in judge(record, quick)],
        **record,
    }


def _quick() -> list[Volumes]:
    return [generated((40, 64, 64), (1.5, 0.8, 0.8), rounds=1)]


def _full() -> list[Volumes]:
    return [
        *real(cases_per_set=6, rounds=3),
        generated((256, 256, 256), (1.0, 1.0, 1.0), rounds=3),
        generated((400, 512, 512), (1.5, 0.8, 0.8), rounds=1, own_grid=False),
    ]


def measured(sets: list[Volumes], scaled: Sequence[str], console: Console) -> Record:
    """All measurements."""
    record: Record = {"chain": {}, "resampling": {}, "sizes": {}}
    for volumes in sets:
        for way, group in volumes.groups().items():
            row = record["chain"][f"{volumes.name}, {way}"] = chain(group, volumes.rounds)
            console.say(f"{volumes.name}, {way}: {row['equivalent']['ratio']:.2f} times MONAI's speed")
        own = replace(group, kernels=None)
        if sum(math.prod(geometry.oriented_shape) for geometry, _ in own.plans) < _CUBIC_VOXELS:
            record["resampling"][volumes.name] = resampling(own)
        record["sizes"][volumes.name] = done(measure(ways.sizes, own)).result
    record["memory"] = memory(sets[-1])
    if scaled:
        by_name = {volumes.name: volumes for volumes in sets}
        record["scaling"] = {name: scaled_up(by_name[name], console) for name in scaled}
    return record


def chain(group: ways.Group, rounds: int) -> Record:
    """Our whole work on a case beside MONAI's chains', and how far apart their results are."""
    arms: dict[str, Callable[[], Measurement]] = {
        "ours": lambda: done(measure(ways.ours, group)),
        **{which: partial(_monai, group, which) for which in ways.CHAINS},
    }
    runs: dict[str, list[Measurement]] = {arm: [] for arm in arms}
    for _ in range(rounds):
        for arm, run in arms.items():
            runs[arm].append(run())
    apart = done(measure(ways.difference, group)).result
    row: Record = {"cases": len(group.cases), "rounds": rounds}
    for arm, taken in runs.items():
        row[arm] = {
            "cpu_s": statistics.median(_seconds(run) for run in taken),
            "prepare_cpu_s": statistics.median(run.result["prepare"] for run in taken),
            "growth_mb": statistics.median(run.growth_mib * 1.048576 for run in taken),
        }
    for which in ways.CHAINS:
        pairs = list(zip(runs[which], runs["ours"], strict=True))
        row[which] |= apart[which] | {
            "ratio": statistics.median(_seconds(a) / _seconds(b) for a, b in pairs),
            "ratio_without_writing": statistics.median(
                a.result["prepare"] / b.result["prepare"] for a, b in pairs
            ),
        }
    return row


def _monai(group: ways.Group, which: ways.Chain) -> Measurement:
    return done(measure(ways.monai, group, which))


def _seconds(run: Measurement) -> float:
    """Of the work itself: scratch folders come and go beside it."""
    seconds: ways.Seconds = run.result
    return seconds["prepare"] + seconds["write"]


def resampling(group: ways.Group) -> Record:
    """Our resampling beside nnU-Net's, and how far apart they are."""
    ours, theirs = (done(measure(ways.resampling, group, who)) for who in ("ours", "nnU-Net"))
    images, labels = (list(zip(a, b, strict=True)) for a, b in zip(ours.result, theirs.result, strict=True))
    apart = np.concatenate([np.abs(a - b).ravel() for a, b in images])
    dice = [2 * np.sum((a > 0) & (a == b)) / max(1, np.sum(a > 0) + np.sum(b > 0)) for a, b in labels]
    return {
        "ours_cpu_s": ours.cpu_s,
        "nnunet_cpu_s": theirs.cpu_s,
        "ratio": theirs.cpu_s / ours.cpu_s,
        "mean_difference_std": float(apart.mean()),
        "difference_99_percentile_std": float(np.percentile(apart, 99)),
        "label_dice": float(np.mean(dice)),
    }


def memory(volumes: Volumes) -> Record:
    """The peak of a worker that surveys, and of one that stores, the one case of a generated set."""
    (case,) = volumes.cases
    recipe = volumes.recipe(0.9)  # finer, so that more is stored than was read
    with tempfile.TemporaryDirectory() as folder:
        peaks = {
            work: peak_memory(work, Path(folder), case, recipe.spacing_mm)[0] for work in ("survey", "store")
        }
    return {
        "volumes": volumes.name,
        "raw_bytes": load_case(case, volumes.classes, ways.LIMIT).image.nbytes,
        "peak_bytes": peaks,
    }


def scaled_up(volumes: Volumes, console: Console) -> Record:
    """Wall seconds of the same work on one CPU and on two, in turns; medians."""
    voxels = load_case(volumes.cases[0], volumes.classes, ways.LIMIT).image.size
    recipe = volumes.recipe(volumes.growth)
    copies = SCALED[volumes.name]
    one: list[float] = []
    two: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(SCALING_ROUNDS):
            for cpus, seconds in ((1, one), (2, two)):
                run = measure(scaling, volumes.cases, recipe, voxels, copies, cpus, folder)
                seconds.append(done(run).result)
    ratio = statistics.median(a / b for a, b in zip(one, two, strict=True))
    console.say(f"{volumes.name}, Ray: {ratio:.2f} times as fast on two CPUs as on one")
    return {
        "cases": copies * len(volumes.cases),
        "rounds": SCALING_ROUNDS,
        "one_cpu_s": statistics.median(one),
        "two_cpus_s": statistics.median(two),
        "ratio": ratio,
    }


if __name__ == "__main__":
    sys.exit(main())
