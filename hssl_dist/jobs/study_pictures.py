"""What a study's arm makes of its best, median and worst case, beside scratch on the same cases."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import torch

from hssl_dist.config.parts import StoreConfig, TrackingConfig
from hssl_dist.errors import MissingError
from hssl_dist.jobs.case_pictures import chosen_cases, shot
from hssl_dist.jobs.stored_model import StoredModel, load_stored_model
from hssl_dist.records import CaseRecord
from hssl_dist.report.evaluation import Picture
from hssl_dist.report.study import Cases
from hssl_dist.report.study_words import as_dice, share
from hssl_dist.segmentation.metrics import mean_dice
from hssl_dist.segmentation.study_cells import SCRATCH_ARM, CaseDice, StudyCell
from hssl_dist.segmentation.study_pairs import paired, patient_dice
from hssl_dist.store import Reader, open_reader, read_manifest


def draw_task_cases(
    cells: Sequence[StudyCell],
    arm: str,
    *,
    store: StoreConfig,
    tracking: TrackingConfig,
    titles: Mapping[str, str],
    device: torch.device,
    overlap: float = 0.5,
) -> Cases | None:
    """Of one task's cells: three cases, drawn with the arm's model and scratch's; None without a pair.

    The models are those of one subset and seed at the smallest share, the pair whose gain is the median of
    all pairs' (the lower of two), so that no lucky run stands for the arm; cases are ranked by the arm's
    Dice. Raises MissingError if a case is not in the store, and the errors of loading models.
    """
    pair = typical_pair(cells, arm)
    if pair is None:
        return None
    task, reader = pair[0].task, open_reader(store.url)
    models = [load_stored_model(tracking, cell.model, device, overlap) for cell in pair]
    records = _records(store, models[0])
    others = {case.case: case for case in pair[1].cases}
    rows = []
    for rank, case in chosen_cases(pair[0].cases, _score).items():
        if case.case not in records:
            raise MissingError(
                f"case {case.case!r} of {task} is not in the store; use the one it was scored on"
            )
        cases = (case, others.get(case.case))
        rows.append(_row(rank, cases, models, pair, (reader, records[case.case]), titles))
    return Cases(task, _about(pair[0], titles), models[0].card.classes, rows)


def typical_pair(cells: Sequence[StudyCell], arm: str) -> tuple[StudyCell, StudyCell] | None:
    """The arm's cell and scratch's of one subset and seed, at the smallest share that has such pairs, whose
    mean gain is the median of all; None if there is no pair.
    """
    known = {(cell.fraction, cell.arm, cell.subset, cell.seed): cell for cell in cells}
    pairs = [
        (cell, known[fraction, SCRATCH_ARM, subset, seed])
        for (fraction, name, subset, seed), cell in sorted(known.items())
        if name == arm and (fraction, SCRATCH_ARM, subset, seed) in known
    ]
    gains = [
        (_gain(*pair), place) for place, pair in enumerate(pairs) if pair[0].fraction == pairs[0][0].fraction
    ]
    gains = [(gain, place) for gain, place in gains if not math.isnan(gain)]
    return pairs[sorted(gains)[(len(gains) - 1) // 2][1]] if gains else None


def _gain(cell: StudyCell, scratch: StudyCell) -> float:
    differences = paired({(0, 0): patient_dice(cell)}, {(0, 0): patient_dice(scratch)}).differences
    return statistics.fmean(differences.values()) if differences else math.nan


def _score(case: CaseDice) -> float:
    return mean_dice(case.dice.values())


def _records(store: StoreConfig, model: StoredModel) -> dict[str, CaseRecord]:
    if model.card.dataset is None:
        raise MissingError("the model does not say what dataset it is for; fine-tune it again")
    return {record.id: record for record in read_manifest(store.url, model.card.dataset).cases}


def _row(
    rank: str,
    cases: Sequence[CaseDice | None],
    models: Sequence[StoredModel],
    pair: Sequence[StudyCell],
    stored: tuple[Reader, CaseRecord],
    titles: Mapping[str, str],
) -> list[Picture]:
    """A picture per model of one case."""
    reader, record = stored
    image, label = reader.image(record)[0], reader.label(record)
    pictures = []
    for case, model, cell in zip(cases, models, pair, strict=True):
        png = shot(image, label, model.predict(reader, record), record.geometry.spacing_mm)
        dice = as_dice(math.nan if case is None else _score(case))
        name = titles.get(cell.arm, cell.arm)
        pictures.append(Picture(png, f"{rank.capitalize()}: {record.id}, {name}, Dice {dice}"))
    return pictures


def _about(cell: StudyCell, titles: Mapping[str, str]) -> str:
    name = titles.get(cell.arm, cell.arm)
    return (
        f"{share(cell.fraction)} of the labels, subset {cell.subset}, seed {cell.seed}: of all pairs of runs "
        f"the one with the median gain. Best, median and worst are by the Dice of {name}."
    )
