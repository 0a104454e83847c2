"""Cells of a made-up label-efficiency study: effects of subsets, seeds and patients, and a known gain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from hssl_dist.config.evaluate import IntervalConfig
from hssl_dist.segmentation.study import Questions, Row, StudyResults, summarise_study
from hssl_dist.segmentation.study_cells import SCRATCH_ARM, CaseDice, StudyCell
from hssl_dist.segmentation.study_pairs import Group

CLASSES = {"hippocampus": ("anterior", "posterior"), "acdc": ("RV", "myocardium", "LV")}
PATIENTS = {"hippocampus": 20, "acdc": 12}
FEW = IntervalConfig(resamples=1000)
QUESTIONS = Questions("multi", (("multi", "single"),), ("single", "multi"))
GAINS = {"multi": 0.03, "single": 0.01}


def cell(arm: str = SCRATCH_ARM, task: str = "heart", fraction: float = 0.05, **changes: object) -> StudyCell:
    """A cell of two patients, `a` with Dice 0.5 and `b` with two cases."""
    values: dict[str, object] = {
        "arm": arm,
        "task": task,
        "fraction": fraction,
        "subset": 0,
        "seed": 0,
        "part": "test",
        "labelled": ("x", "y"),
        "curve": ((10, 0.3), (20, 0.4), (30, 0.5), (40, 0.5)),
        "best_step": 30,
        "steps": 40,
        "cases": (scored("a", "a", 0.5), scored("b1", "b", 0.6), scored("b2", "b", 0.8)),
        "seconds": 1.5,
        "model": f"models:/{task}/1",
        "run_id": "f" * 32,
        "parent_model": None,
    }
    return StudyCell.model_validate(values | changes)


def scored(case: str, patient: str, *dice: float | None) -> CaseDice:
    """A case whose classes are called c0, c1, ..."""
    return CaseDice(case=case, patient=patient, dice={f"c{place}": value for place, value in enumerate(dice)})


def simulated(
    gains: Mapping[str, float],
    *,
    tasks: Sequence[str] = ("hippocampus", "acdc"),
    fractions: Sequence[float] = (0.05, 0.1, 1.0),
    subsets: int = 5,
    seeds: int = 2,
    seed: int = 0,
) -> list[StudyCell]:
    """All cells of scratch and of the arms of `gains`, which is Dice at 5 % of the labels; it shrinks with
    more of them. With all labels there is one subset.
    """
    rng = np.random.default_rng(seed)
    found = []
    for task in tasks:
        patients = [f"{task[:4]}{number:02d}" for number in range(PATIENTS[task])]
        of_patient = rng.normal(scale=0.03, size=len(patients))
        for fraction in fractions:
            base = 0.84 + 0.055 * math.log10(fraction)
            for subset in range(1 if fraction == 1.0 else subsets):
                of_subset = rng.normal(scale=0.01)
                for run in range(seeds):
                    for arm, gain in {SCRATCH_ARM: 0.0, **gains}.items():
                        level = base + of_subset + rng.normal(scale=0.004)
                        level += gain * (0.05 / fraction) ** 0.5
                        dice = level + of_patient + rng.normal(scale=0.012, size=len(patients))
                        found.append(_simulated(rng, arm, task, fraction, (subset, run), patients, dice))
    return found


def _simulated(
    rng: np.random.Generator,
    arm: str,
    task: str,
    fraction: float,
    run: tuple[int, int],
    patients: Sequence[str],
    dice: np.ndarray,
) -> StudyCell:
    cases = tuple(
        CaseDice(
            case=f"{patient}_{frame}",
            patient=patient,
            dice={
                name: float(np.clip(value + 0.02 * place + rng.normal(scale=0.01), 0.0, 1.0))
                for place, name in enumerate(CLASSES[task])
            },
        )
        for patient, value in zip(patients, dice, strict=True)
        for frame in ("01", "12")
    )
    steps = range(200, 2001, 200)
    speed = 300.0 if arm == SCRATCH_ARM else 180.0
    curve = tuple(
        (step, float(dice.mean() * (1 - math.exp(-step / speed)) + rng.normal(scale=0.003))) for step in steps
    )
    return cell(
        arm,
        task,
        fraction,
        subset=run[0],
        seed=run[1],
        labelled=tuple(f"p{number}" for number in range(max(2, round(80 * fraction)))),
        curve=curve,
        best_step=max(curve, key=lambda point: point[1])[0],
        steps=2000,
        cases=cases,
        model=f"models:/{task}-unet/{run[0] * 10 + run[1]}",
        parent_model=None if arm == SCRATCH_ARM else f"models:/{arm}/{run[1]}",
    )


def summarised(cells: list[StudyCell], **changes: object) -> StudyResults:
    """The statistics of the cells, with intervals of few resamples."""
    return summarise_study(cells, QUESTIONS, FEW, **changes)  # type: ignore[arg-type]


def row_of(summary: StudyResults, group: Group) -> Row:
    """The row of a task, share and arm."""
    (row,) = [row for row in summary.rows if row.group == group]
    return row
