"""Synthetic challenge datasets on disk: three tasks in three layouts and two groups, from a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hssl_dist.config.preprocess import DatasetConfig
from hssl_dist.synthetic.abdomen import abdomen
from hssl_dist.synthetic.anatomy import Phantom
from hssl_dist.synthetic.heart import heart
from hssl_dist.synthetic.layouts import (
    Description,
    Layout,
    NiftiWriter,
    Orientation,
    PhantomCase,
    write_layout,
)

Scanner = Callable[[np.random.Generator, np.random.Generator], Phantom]

_UNLABELLED_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class PhantomTask:
    """A task, the layout it comes in, and how its scans are made: one per session of every patient."""

    about: Description
    layout: Layout
    scanners: dict[str | None, Scanner]
    test_cases: bool


TASKS: dict[str, PhantomTask] = {
    "liver": PhantomTask(
        Description("liver", "liver", "abdomen-ct", "ct", {1: "liver", 2: "tumour"}, sessions=False),
        layout="msd",
        scanners={None: lambda anatomy, scan: abdomen(anatomy, scan, "liver")},
        test_cases=True,
    ),
    "kidney": PhantomTask(
        Description("kidney", "kidney", "abdomen-ct", "ct", {1: "kidney", 2: "cyst"}, sessions=False),
        layout="nnunet",
        scanners={None: lambda anatomy, scan: abdomen(anatomy, scan, "kidney")},
        test_cases=False,
    ),
    "heart": PhantomTask(
        Description(
            "heart",
            "heart",
            "heart-mr",
            "mr",
            {1: "right ventricle", 2: "myocardium", 3: "left ventricle"},
            sessions=True,
        ),
        layout="folder",
        scanners={
            "ed": lambda anatomy, scan: heart(anatomy, scan, "ed"),
            "es": lambda anatomy, scan: heart(anatomy, scan, "es"),
        },
        test_cases=False,
    ),
}


def write_phantoms(
    root: Path, seed: int, write: NiftiWriter, patients: int = 24, tasks: Sequence[str] = tuple(TASKS)
) -> tuple[DatasetConfig, ...]:
    """Write one dataset per task below `root`, each in its own layout, and describe them.

    liver: MSD, CT, with unlabelled test cases; kidney: nnU-Net, CT; heart: plain folders, MR, two phases of
    every patient. `write(path, array_xyz, affine)` puts a NIfTI file (`imaging.write_nifti`). The configs'
    `source` is relative: preprocess them with `source_root=root`. Equal seeds give equal files.
    """
    return tuple(write_task(root, task, seed, write, patients) for task in tasks)


def write_task(
    root: Path, task: str, seed: int, write: NiftiWriter, patients: int = 24, layout: Layout | None = None
) -> DatasetConfig:
    """Write one task's dataset, in its own layout or the one given."""
    made = TASKS[task]
    cases = [case for number in range(patients) for case in patient_cases(task, seed, number, patients)]
    return write_layout(layout or made.layout, root, made.about, cases, write)


def patient_cases(task: str, seed: int, number: int, patients: int) -> list[PhantomCase]:
    """All sessions of one of `patients`: the same anatomy, another scan. Some tasks' last are unlabelled."""
    made = TASKS[task]
    identity = [seed, *task.encode(), number]
    unlabelled = int(_UNLABELLED_SHARE * patients) if made.test_cases else 0
    cases = []
    for index, (session, scanner) in enumerate(made.scanners.items()):
        anatomy, scan = np.random.default_rng([*identity, 0]), np.random.default_rng([*identity, 1, index])
        orientation: Orientation = "LPS" if scan.uniform() < 0.4 else "RAS"
        cases.append(
            PhantomCase(
                patient=f"p{number:03d}",
                session=session,
                phantom=scanner(anatomy, scan),
                orientation=orientation,
                labelled=number < patients - unlabelled,
            )
        )
    return cases
