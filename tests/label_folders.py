"""Folders of label maps to evaluate, small enough for tests: two boxes in four cases of three patients."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from hssl_dist.config.evaluate import EvaluateConfig
from hssl_dist.console import Console
from hssl_dist.imaging import write_nifti
from hssl_dist.jobs import evaluate
from hssl_dist.records import Outcome

SPACING = (1.0, 1.0, 2.5)  # x y z
AFFINE = np.diag([*SPACING, 1.0])
CASES = ("p1_a", "p1_b", "p2_a", "p3_a")
SHAPE = (20, 18, 8)


def label_of(case: str) -> np.ndarray:
    """Two boxes side by side, a little larger for each case; the third case lacks the second."""
    array, size = np.zeros(SHAPE, np.uint8), 4 + CASES.index(case)
    array[2 : 2 + size, 3 : 3 + size, 2:6] = 1
    if case != "p2_a":
        array[12 : 12 + size, 3 : 3 + size, 2:6] = 2
    return array


class Folders:
    """True labels, a perfect set and one that is a voxel off, without the second class in case p1_b."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for case in CASES:
            label = label_of(case)
            self.write("labels", case, label)
            self.write("perfect", case, label)
            shifted = np.roll(label, 1, axis=1)
            if case == "p1_b":
                shifted[shifted == 2] = 0
            self.write("off", case, shifted)
            image = np.random.default_rng(1).normal(size=SHAPE) + label
            self.write("images", f"{case}_0000", image.astype(np.float32))

    def write(self, folder: str, case: str, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
        (self.root / folder).mkdir(exist_ok=True)
        write_nifti(self.root / folder / f"{case}.nii.gz", array, affine)

    def run(self, *sets: str, told: io.StringIO | None = None, **changes: Any) -> Outcome:
        values = {
            "predictions": tuple(
                f"{text.partition('=')[0]}={self.root / text.rpartition('=')[2]}" for text in sets
            ),
            "labels": str(self.root / "labels"),
            "output": str(self.root / "output"),
            "classes": {1: "left", 2: "right"},
            "intervals": {"resamples": 200},
            "patient_pattern": "(p[0-9]+)_",
            "threads": 1,
        }
        config = EvaluateConfig.model_validate(values | changes)
        return evaluate.run(config, Console(told or io.StringIO()))

    @property
    def scores(self) -> dict[str, Any]:
        return json.loads((self.root / "output/scores.json").read_text())

    @property
    def rows(self) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO((self.root / "output/scores.csv").read_text())))
