"""python -m benchmarks.preprocess --json

Preprocessing beside MONAI's transforms and nnU-Net's resampling and storage: CPU seconds, memory, difference.

Every measurement is a fresh process with one thread; ways take turns, medians count. `chain` is all that is
done to a case, on the file's own grid or resampled linearly, where our numbers and MONAI's are equal to the
stated error; `resampling` is our kernels beside nnU-Net's of order 3 on the same crops in memory; `sizes` is
the same prepared images in both stores; `scaling` is the job's own tasks on Ray with one CPU and with two.
Writes benchmarks/results/preprocess.json and prints it (--json) or a table. --quick is a small trial.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import preprocess_ways as ways
from benchmarks.measuring import CannotRun, Measurement, load_average, machine, measure
from benchmarks.preprocess_data import CLASSES, generated_case
from benchmarks.preprocess_scaling import scaling
from hssl_dist.config.loading import load_config
from hssl_dist.config.preprocess import PreprocessConfig
from hssl_dist.datasets import discover
from hssl_dist.imaging import ChannelRecipe, Recipe, load_case
from hssl_dist.records import Case, Shape, Triple

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "preprocess.json"
CT = ChannelRecipe(rule="ct", clip_low=-150.0, clip_high=250.0, offset=40.0, scale=60.0)
MR = ChannelRecipe(rule="mr")
ONE_GRID = {"hippocampus", "generated 256x256x256", "generated 400x512x512", "generated 40x64x64"}
"""Sets whose cases share a spacing, which are also prepared without resampling."""

SCALED = {"hippocampus": 100, "generated 256x256x256": 16}
"""Many small cases and a few large ones, and how often each is stored."""

PEERS = ("monai", "nnunetv2", "blosc2", "scikit-image", "isal", "zarr")

Set = tuple[tuple[Case, ...], dict[int, str], ChannelRecipe, float]
"""Cases, their classes, the rule of their channel, and the new spacing over the old."""


def real_sets(cases_per_set: int) -> dict[str, Set]:
    """Cases of each real dataset, evenly spaced over it."""
    config = load_config(
        PreprocessConfig, "preprocess", ["--config", str(ROOT / "configs/preprocess/real.yaml")]
    )
    sets: dict[str, Set] = {}
    for dataset_config in config.datasets:
        dataset = discover(dataset_config, config.source_root)
        cases = [case for case in dataset.cases if case.label is not None]
        chosen = tuple(cases[index * len(cases) // cases_per_set] for index in range(cases_per_set))
        sets[dataset.name] = chosen, dataset.classes, CT if dataset.modalities == ("ct",) else MR, 0.8
    return sets


def generated_sets(shapes: dict[Shape, Triple]) -> dict[str, Set]:
    """One generated case of each shape and spacing, z y x."""
    folder = Path(tempfile.gettempdir(), "hssl-generated")
    return {
        f"generated {'x'.join(map(str, shape))}": (
            (generated_case(folder, "x".join(map(str, shape)), shape, spacing_mm),), CLASSES, CT, 1.25
        )
        for shape, spacing_mm in shapes.items()
    }  # fmt: skip


def groups_of(name: str, cases: Set) -> dict[str, ways.Group]:
    """The set on its own grid, if that is one and it is generated, and resampled linearly."""
    chosen, classes, channel, factor = cases
    own = load_case(chosen[0], classes, ways.LIMIT).spacing_mm
    coarser = tuple(round(edge * factor, 6) for edge in own)

    def group(spacing_mm: Any, kernels: Any) -> ways.Group:
        recipe = Recipe(spacing_mm=spacing_mm, channels=(channel,), classes=classes, storage={})
        planned = ways.Group(name, chosen, recipe, kernels)
        return replace(planned, plans=_done(measure(ways.plan, planned)).result)

    groups = {"linear": group(coarser, ways.LINEAR)}
    return {"own grid": group(own, None), **groups} if name in ONE_GRID else groups


def _done(outcome: Measurement | CannotRun) -> Measurement:
    if isinstance(outcome, CannotRun):
        raise RuntimeError(f"a measurement failed: it {outcome.reason}")
    return outcome


def _in_turns(rounds: int, contestants: dict[str, Callable[[], Measurement | CannotRun]]) -> dict[str, Any]:
    """Medians of all contestants, who take turns."""
    runs: dict[str, list[Measurement]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            runs[name].append(_done(run()))
    return {name: _medians(done) for name, done in runs.items()}


def _medians(runs: list[Measurement]) -> dict[str, float]:
    def median(values: Iterable[float], digits: int) -> float:
        return round(statistics.median(values), digits)

    figures = {
        "cpu_s": median((run.cpu_s for run in runs), 3),
        "wall_s": median((run.wall_s for run in runs), 3),
        "growth_mb": median((run.growth_mib * 1.048576 for run in runs), 1),
    }
    if isinstance(runs[0].result, dict):  # scratch folders are not the work
        figures["prepare_cpu_s"] = median((run.result["prepare"] for run in runs), 3)
        figures["cpu_s"] = median((run.result["prepare"] + run.result["write"] for run in runs), 3)
    return figures


def chain(group: ways.Group, rounds: int) -> dict[str, Any]:
    """Our whole work on a case beside MONAI's, and how far apart their results are."""
    figures = _in_turns(
        rounds, {"ours": partial(measure, ways.ours, group), "MONAI": partial(measure, ways.monai, group)}
    )
    ratios = {
        key: round(figures["MONAI"][f"{key}cpu_s"] / figures["ours"][f"{key}cpu_s"], 2)
        for key in ("", "prepare_")
    }
    return {
        **figures,
        "speed_ratio": ratios[""],
        "speed_ratio_without_writing": ratios["prepare_"],
        **_done(measure(ways.difference, group)).result,
    }


def resampling(group: ways.Group, rounds: int) -> dict[str, Any]:
    """Our resampling beside nnU-Net's, and how far apart they are."""
    kept: dict[str, Any] = {}

    def run(who: Any) -> Measurement | CannotRun:
        outcome = measure(ways.resampling, group, who)
        kept[who] = _done(outcome).result
        return outcome

    figures = _in_turns(rounds, {who: partial(run, who) for who in ("ours", "nnU-Net")})
    pairs = [list(zip(a, b, strict=True)) for a, b in zip(kept["ours"], kept["nnU-Net"], strict=True)]
    apart = np.concatenate([np.abs(a - b).ravel() for a, b in pairs[0]])
    same = [2 * np.sum((a > 0) & (a == b)) / max(1, np.sum(a > 0) + np.sum(b > 0)) for a, b in pairs[1]]
    return {
        **figures,
        "speed_ratio": round(figures["nnU-Net"]["cpu_s"] / figures["ours"]["cpu_s"], 2),
        "mean_difference_std": float(apart.mean()),
        "difference_99_percentile_std": float(np.percentile(apart, 99)),
        "label_dice": float(np.mean(same)) if same else None,
    }


def run(sets: dict[str, Set], rounds: int, scale_up: bool) -> dict[str, Any]:
    """All measurements."""
    result: dict[str, Any] = {
        "machine": machine(),
        "versions": {name: version(name) for name in PEERS},
        "load_before": load_average(),
        "rounds": rounds,
        "chain": {},
        "resampling": {},
        "sizes": {},
    }
    for name, cases in sets.items():
        groups = groups_of(name, cases)
        for way, group in groups.items():
            row = result["chain"][f"{name}, {way}"] = chain(group, rounds)
            _say(f"{name}, {way}: {row['speed_ratio']} times MONAI's speed")
        own = replace(groups["linear"], kernels=None)
        if sum(np.prod(geometry.oriented_shape) for geometry, _ in own.plans) < 1 << 26:
            result["resampling"][name] = resampling(own, 1)
        result["sizes"][name] = _done(measure(ways.sizes, own)).result
    if scale_up:
        result["scaling"] = {name: _scaling(sets[name], name) for name in SCALED}
    return {**result, "load_after": load_average()}


def _scaling(cases: Set, name: str) -> dict[str, Any]:
    """Wall seconds of the same work on one CPU and on two."""
    chosen, classes, channel, factor = cases
    volume = load_case(chosen[0], classes, ways.LIMIT)
    coarser: Any = tuple(round(edge * factor, 6) for edge in volume.spacing_mm)
    recipe = Recipe(spacing_mm=coarser, channels=(channel,), classes=classes, storage={})
    seconds = {
        cpus: _done(measure(scaling, chosen, recipe, volume.image.size, SCALED[name], cpus)).wall_s
        for cpus in (1, 2)
    }
    _say(f"{name}, Ray: {seconds[1]:.1f} s, {seconds[2]:.1f} s")
    return {"one_cpu_s": seconds[1], "two_cpus_s": seconds[2], "ratio": round(seconds[1] / seconds[2], 2)}


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [
        "| volumes | ours, s | MONAI, s | ratio | without writing | ours, MB | MONAI, MB | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in result["chain"].items():
        ours, monai = row["ours"], row["MONAI"]
        lines.append(
            f"| {name} | {ours['cpu_s']:.2f} | {monai['cpu_s']:.2f} | {row['speed_ratio']:.1f} "
            f"| {row['speed_ratio_without_writing']:.1f} | {ours['growth_mb']:.0f} "
            f"| {monai['growth_mb']:.0f} | {row['max_error_std']:.1e} |"
        )
    lines += [
        "",
        "| volumes | ours, s | nnU-Net, s | ratio | mean difference | label Dice |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in result["resampling"].items():
        lines.append(
            f"| {name} | {row['ours']['cpu_s']:.2f} | {row['nnU-Net']['cpu_s']:.2f} | "
            f"{row['speed_ratio']:.1f} | "
            f"{row['mean_difference_std']:.1e} | {row['label_dice']:.3f} |"
        )
    lines += [
        "",
        "| volumes | ours, MB | nnU-Net, MB | ratio | largest error | rms error |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in result["sizes"].items():
        lines.append(
            f"| {name} | {row['ours_bytes'] / 1e6:.2f} | {row['nnunet_bytes'] / 1e6:.2f} | "
            f"{row['ratio']:.2f} | "
            f"{row['max_error_std']:.1e} | {row['rms_error_std']:.1e} |"
        )
    if "scaling" in result:
        lines += ["", "| volumes | one CPU, s | two CPUs, s | ratio |", "|---|---|---|---|"]
        lines += [
            f"| {name} | {row['one_cpu_s']:.1f} | {row['two_cpus_s']:.1f} | {row['ratio']:.2f} |"
            for name, row in result["scaling"].items()
        ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--quick", action="store_true", help="one small volume, once; nothing is saved")
    flags = parser.parse_args()
    if flags.quick:
        result = run(generated_sets({(40, 64, 64): (1.5, 0.8, 0.8)}), rounds=1, scale_up=False)
    else:
        large: dict[Shape, Triple] = {(256, 256, 256): (1.0, 1.0, 1.0), (400, 512, 512): (1.5, 0.8, 0.8)}
        result = run({**real_sets(6), **generated_sets(large)}, rounds=3, scale_up=True)
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write((json.dumps(result) if flags.json else table(result)) + "\n")


if __name__ == "__main__":
    main()
