"""The volumes preprocessing is measured on: cases of real datasets, and generated ones as large as wanted."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import preprocess_ways as ways
from benchmarks.measuring import CannotRun, Measurement, measure
from benchmarks.preprocess_data import CLASSES, generated_case
from hssl_dist.config.loading import load_config
from hssl_dist.config.preprocess import PreprocessConfig
from hssl_dist.datasets import discover
from hssl_dist.imaging import ChannelRecipe, Recipe, load_case
from hssl_dist.records import Case, Shape, Triple

ROOT = Path(__file__).parents[1]
CT = ChannelRecipe(rule="ct", clip_low=-150.0, clip_high=250.0, offset=40.0, scale=60.0)
MR = ChannelRecipe(rule="mr")

GENERATED = Path(tempfile.gettempdir(), "hssl-generated")
"""Generated volumes are kept here from one run to the next: they are always the same, and making them takes
longer than preparing them.
"""


@dataclass(frozen=True)
class Volumes:
    """Cases of one dataset, how they are normalised, and how much is measured on them."""

    name: str
    cases: tuple[Case, ...]
    classes: dict[int, str]
    channel: ChannelRecipe
    growth: float
    """The new spacing over the old where they are resampled."""
    rounds: int
    own_grid: bool = False
    """Whether they share a spacing, so that they can also be prepared on their own grid."""

    def recipe(self, growth: float) -> Recipe:
        """To the first case's spacing times `growth`."""
        volume = load_case(self.cases[0], self.classes, ways.LIMIT)
        z, y, x = (round(edge * growth, 6) for edge in volume.spacing_mm)
        return Recipe(spacing_mm=(z, y, x), channels=(self.channel,), classes=self.classes, storage={})

    def group(self, growth: float, kernels: Any) -> ways.Group:
        """What is measured together."""
        planned = ways.Group(self.name, self.cases, self.recipe(growth), kernels)
        return replace(planned, plans=done(measure(ways.plan, planned)).result)

    def groups(self) -> dict[str, ways.Group]:
        """On the files' own grid, if they have one, and resampled linearly."""
        linear = {"linear": self.group(self.growth, ways.LINEAR)}
        return {"own grid": self.group(1.0, None), **linear} if self.own_grid else linear


def done(outcome: Measurement | CannotRun) -> Measurement:
    """The measurement; RuntimeError if there is none."""
    if isinstance(outcome, CannotRun):
        raise RuntimeError(f"a measurement failed: it {outcome.reason}")
    return outcome


def real(cases_per_set: int, rounds: int) -> list[Volumes]:
    """Cases of each real dataset, evenly spaced over it."""
    config = load_config(
        PreprocessConfig, "preprocess", ["--config", str(ROOT / "configs/preprocess/real.yaml")]
    )
    found = []
    for dataset_config in config.datasets:
        dataset = discover(dataset_config, config.source_root)
        cases = [case for case in dataset.cases if case.label is not None]
        chosen = tuple(cases[index * len(cases) // cases_per_set] for index in range(cases_per_set))
        channel = CT if dataset.modalities == ("ct",) else MR
        own_grid = dataset.name == "hippocampus"
        found.append(Volumes(dataset.name, chosen, dataset.classes, channel, 0.8, rounds, own_grid))
    return found


def generated(shape: Shape, spacing_mm: Triple, rounds: int, own_grid: bool = True) -> Volumes:
    """One generated case of a shape and spacing, z y x."""
    sides = "x".join(map(str, shape))
    case = generated_case(GENERATED, sides, shape, spacing_mm)
    return Volumes(f"generated {sides}", (case,), CLASSES, CT, 1.25, rounds, own_grid)
