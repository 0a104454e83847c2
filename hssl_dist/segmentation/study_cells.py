"""What one cell of a label-efficiency study gave: the record its statistics and its report are made from.

A cell is one fine-tuning run: an arm, a task, a share of the labels, a label subset and a seed.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from hssl_dist.records import KeepLargest

SCRATCH_ARM = "scratch"
"""The arm that all others are compared with."""


class CaseDice(BaseModel):
    """Dice of one case by class, None where the class is in neither label nor prediction."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    case: str
    patient: str
    dice: dict[str, float | None]


class StudyCell(BaseModel):
    """A finished cell.

    `seed` is that of the pretraining; the fine-tuning's follows from it and the subset, so that a cell is
    paired with the one from scratch of the same task, share, subset and seed. `curve` has validation Dice by
    optimiser step. `part` says which patients `cases` are: `validation` while a study is being tuned, `test`
    when it reports.
    `keep_largest` is what of its predictions is kept; None is not known: cells of before do not say.
    `precision` is the one it was trained in, what `auto` came to on its hardware; None is not known, too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: str
    task: str
    fraction: float
    subset: int
    seed: int
    part: str
    labelled: tuple[str, ...]
    curve: tuple[tuple[int, float], ...]
    best_step: int
    steps: int
    cases: tuple[CaseDice, ...]
    seconds: float
    model: str
    run_id: str
    parent_model: str | None
    """Registry version it was fine-tuned from; None from scratch."""
    code_version: str = "unknown"
    """Of this package, when the cell was finished; unknown in cells of before it was kept."""
    keep_largest: KeepLargest | None = None
    precision: Literal["float32", "bfloat16", "float16"] | None = None
