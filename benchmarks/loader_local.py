"""The loader's benchmark on local disk: what is measured, round by round, and the figures made of it."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.loader_data import Prepared, draw_patches, generate, real, reference_digests
from benchmarks.loader_peers import blosc2_folder, write_blosc2, write_persistent
from benchmarks.loader_process import ARMS, run_arm
from benchmarks.measuring import drop_from_page_cache

if TYPE_CHECKING:
    from hssl_dist.console import Console
    from hssl_dist.records import Shape

MAIN_ARMS = (
    "ours",
    "ours, made float32",
    "ours, no cache",
    "zarr-python",
    "MONAI CacheDataset",
    "MONAI PersistentDataset, 4 crops a visit",
    "nnU-Net blosc2",
)
BATCH = 8
REAL_CONFIG = "configs/preprocess/real.yaml"
_DEADLINE_S = 120.0

Figures = dict[str, Any]


@dataclass(frozen=True)
class Scenario:
    """Volumes, a patch shape, and the arms that deliver it."""

    volumes: str
    patch: Shape
    patches: int
    """Of the first epoch, and different ones altogether."""
    arms: tuple[str, ...]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.volumes}, patch {' x '.join(map(str, self.patch))}"


@dataclass(frozen=True)
class Remote:
    """Generated volumes on object storage, and the patches of them."""

    shape: Shape
    volumes: int
    patch: Shape
    patches: int


@dataclass(frozen=True)
class Plan:
    """All scenarios and how long each measurement takes."""

    sources: dict[str, Callable[[str], Prepared]]
    scenarios: tuple[Scenario, ...]
    remote: Remote
    rounds: int
    warm_s: float


FULL = Plan(
    {
        "8 x 256^3": lambda folder: generate(folder, (256, 256, 256), 8),
        "1 x 400 x 512 x 512": lambda folder: generate(folder, (400, 512, 512), 1),
        "real": lambda folder: real(folder, REAL_CONFIG, (8, 32, 32), per_dataset=12),
    },
    (
        Scenario("8 x 256^3", (96, 96, 96), 96, tuple(ARMS)),
        Scenario("8 x 256^3", (24, 72, 72), 256, MAIN_ARMS),
        Scenario("1 x 400 x 512 x 512", (96, 96, 96), 96, MAIN_ARMS),
        Scenario("real", (8, 32, 32), 256, MAIN_ARMS),
    ),
    Remote((256, 256, 256), 4, (96, 96, 96), 48),
    rounds=3,
    warm_s=2.0,
)
QUICK = Plan(
    {"2 x 64^3": lambda folder: generate(folder, (64, 64, 64), 2)},
    (Scenario("2 x 64^3", (24, 24, 24), 16, MAIN_ARMS),),
    Remote((64, 64, 64), 2, (24, 24, 24), 16),
    rounds=1,
    warm_s=0.2,
)


def measure_local(plan: Plan, scratch: Path, console: Console) -> list[Figures]:
    """The figures of each scenario."""
    found = []
    for volumes, make in plan.sources.items():
        folder = scratch / "".join(mark if mark.isalnum() else "-" for mark in volumes)
        console.say(f"{volumes}: making the volumes")
        prepared = make(str(folder))
        write_persistent(prepared)
        scenarios = [scenario for scenario in plan.scenarios if scenario.volumes == volumes]
        found += [_measure(scenario, prepared, plan, console) for scenario in scenarios]
        shutil.rmtree(folder)
    return found


def _measure(scenario: Scenario, prepared: Prepared, plan: Plan, console: Console) -> Figures:
    write_blosc2(prepared, scenario.patch)
    draws = draw_patches(prepared, scenario.patch, BATCH, scenario.patches)
    expected = reference_digests(prepared, draws)
    outcomes: dict[str, list[Figures]] = {arm: [] for arm in scenario.arms}
    for number in range(plan.rounds):
        for arm in turned(scenario.arms, number):
            console.say(f"{scenario.name}: round {number + 1} of {plan.rounds}, {arm}")
            shutil.rmtree(Path(prepared.folder, "cache"), ignore_errors=True)
            drop_from_page_cache(Path(prepared.folder))
            outcomes[arm].append(run_arm(arm, prepared, draws, plan.warm_s, _DEADLINE_S))
    return {
        "scenario": scenario.name,
        "patch": scenario.patch,
        "batch": BATCH,
        "patches": scenario.patches,
        "values_bytes": sum(prepared.array(case).stat().st_size for case in prepared.cases),
        "arms": [
            {
                "arm": arm,
                "disk_bytes": _disk_bytes(arm, prepared, scenario.patch),
                **summary(outcomes[arm], expected),
            }
            for arm in scenario.arms
        ],
    }


def turned(arms: tuple[str, ...], number: int) -> tuple[str, ...]:
    """Another order each round, so that no arm always follows the same one."""
    shift = number * len(arms) // 3
    return arms[shift:] + arms[:shift]


def summary(outcomes: list[Figures], expected: dict[str, str]) -> Figures:
    """Medians over the rounds, with the smallest and the largest."""
    return {
        "startup_s": _spread([outcome["startup_s"] for outcome in outcomes]),
        "first": _window([outcome["first"] for outcome in outcomes]),
        "steady": _window([outcome["steady"] for outcome in outcomes]),
        "memory_mib": {
            kind: statistics.median(
                outcome["peak"][f"{kind}_mib"] - outcome["libraries"][f"{kind}_mib"] for outcome in outcomes
            )
            for kind in ("private", "file")
        },
        "libraries_mib": {
            kind: statistics.median(outcome["libraries"][f"{kind}_mib"] for outcome in outcomes)
            for kind in ("private", "file")
        },
        "checked": min(len(outcome["digests"]) for outcome in outcomes),
        "expected": len(expected),
        "unequal": sum(
            digest != expected[name] for outcome in outcomes for name, digest in outcome["digests"].items()
        ),
    }


def _window(windows: list[Figures]) -> Figures:
    return {
        "patches_per_s": _spread([window["patches"] / window["wall_s"] for window in windows]),
        "cpu_s_per_patch": _spread([window["cpu_s"] / window["patches"] for window in windows]),
        "read_bytes": _spread([window["read_bytes"] for window in windows]),
        "served": windows[-1]["served"],
        "figures": windows[-1]["figures"],
        "patches": windows[-1]["patches"],
    }


def _spread(values: list[float]) -> Figures:
    return {"median": statistics.median(values), "values": values}


def _disk_bytes(arm: str, prepared: Prepared, patch: Shape) -> int:
    """Of the files an arm reads; the node's cache not among them."""
    if arm.startswith("MONAI"):
        kind = "persistent" if "Persistent" in arm else "arrays"
        return sum(size for _, size in _sizes(Path(prepared.folder, kind)))
    if arm.startswith("nnU-Net"):
        files = _sizes(blosc2_folder(prepared, patch))
        return sum(size for name, size in files if name.endswith(".b2nd") and not name.endswith("_seg.b2nd"))
    return sum(size for _, size in _sizes(Path(prepared.store)))


def _sizes(folder: Path) -> Iterator[tuple[str, int]]:
    return ((path.name, path.stat().st_size) for path in folder.rglob("*") if path.is_file())
