"""One piece of a study: a pretraining, or a cell's fine-tuning and scores. By the jobs' own `run`, so a piece
that was stopped goes on inside its run, and one that is done gives its result again.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from hssl_dist import files
from hssl_dist.config.finetune import SCRATCH
from hssl_dist.errors import CorruptError, Interrupted
from hssl_dist.files.sealed_json import read_sealed
from hssl_dist.jobs import evaluate, finetune, pretrain
from hssl_dist.jobs.finished import needed, noted_summary
from hssl_dist.jobs.lineage import code_version
from hssl_dist.jobs.study_plan import Cell, Pretraining, evaluate_config, finetune_config, run_name
from hssl_dist.records import Record
from hssl_dist.segmentation.study_cells import CaseDice, StudyCell

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hssl_dist.config.study import StudyConfig
    from hssl_dist.console import Console


class Pretrained(Record):
    """A finished pretraining: what it saw, and where its network and its curves are.

    `datasets` are those it drew from, all of the store if empty; `samples` the regions of both stages;
    `metrics` the newest value of each.
    """

    name: str
    seed: int
    arms: tuple[str, ...]
    tasks: tuple[str, ...]
    datasets: tuple[str, ...]
    steps: int
    samples: int
    metrics: dict[str, float]
    model: str
    folder: str
    run_id: str


def run_pretraining(pretraining: Pretraining, console: Console) -> Pretrained:
    """Pretrain, or go on. Raises Interrupted once a checkpoint is saved, TrackingError if the network cannot
    be registered yet, and the errors of pretraining.
    """
    config = pretraining.config
    outcome = pretrain.run(config, console)
    summary = outcome.summary
    if outcome.status == "interrupted":
        raise Interrupted(f"{config.name}: {summary['reason']}")
    for warning in outcome.warnings:
        console.warn(f"{config.name}: {warning}")
    return Pretrained(
        name=config.name,
        seed=config.seed,
        arms=pretraining.arms,
        tasks=pretraining.tasks,
        datasets=config.sampling.datasets,
        steps=summary["steps"],
        samples=config.samples,
        metrics=summary["metrics"],
        model=needed(summary, config.name),
        folder=summary["folder"],
        run_id=summary["run_id"],
    )


def read_cell(url: str) -> StudyCell:
    """A finished cell as a study has kept it, sealed or of before. Raises CorruptError, naming the file."""
    shown = files.shown(url)
    try:
        return StudyCell.model_validate(read_sealed(shown, files.read(url)))
    except (CorruptError, ValidationError) as error:
        said = str(error) if isinstance(error, CorruptError) else f"{shown} is no cell of a study"
        raise CorruptError(f"{said}; remove it, and the study takes it from its run again") from None


def run_cell(config: StudyConfig, models: Mapping[str, str], cell: Cell, console: Console) -> StudyCell:
    """Fine-tune, or go on, and score; `models` has the version that each pretraining registered.

    Raises as those jobs do, and TrackingError if the network cannot be registered yet.
    """
    model = SCRATCH if cell.pretraining is None else models[cell.pretraining]
    tuned = finetune.run(finetune_config(config, cell, model), console).summary
    registered = needed(tuned, cell.id)
    scored = evaluate.run(evaluate_config(config, cell, registered), console).summary
    scores: dict[str, Any] = json.loads(files.read(scored["json"]))
    return StudyCell(
        arm=cell.arm.name,
        task=cell.task.dataset,
        fraction=cell.fraction,
        subset=cell.subset,
        seed=cell.seed,
        part=config.part,
        labelled=tuple(tuned["patients"]),
        curve=tuple((step, dice) for step, dice in tuned["val_dice_curve"]),
        best_step=tuned["best_step"],
        steps=tuned["steps"],
        cases=tuple(
            CaseDice(case=case["case"], patient=case["patient"], dice=case["dice"])
            for case in scores["cases"]
        ),
        seconds=round(tuned["seconds"] + scored["seconds"], 1),
        model=registered,
        run_id=tuned["run_id"],
        parent_model=None if model == SCRATCH else model,
        code_version=code_version(),
        keep_largest=tuned["keep_largest"],
        precision=tuned.get("precision"),  # a run that was done before it was kept does not say
    )


def with_way(config: StudyConfig, cell: Cell, found: StudyCell) -> StudyCell:
    """A finished cell with what of its predictions is kept; where it does not say, its run's folder may."""
    if found.keep_largest is not None:
        return found
    noted = noted_summary(files.join(config.runs, run_name(config, cell))) or {}
    return found.model_copy(update={"keep_largest": noted.get("keep_largest")})
