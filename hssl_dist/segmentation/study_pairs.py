"""A study's cells as Dice by patient, and in pairs: what is compared with what, and what lacks a partner.

runs = grouped(cells)                                      # {Group: {(subset, seed): {patient: Dice}}}
pairing = paired(runs[first], runs[other])                 # first minus other
pairing.differences                                        # {(subset, seed, patient): difference}
in_common(runs)                                            # what all arms of a task and share have
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hssl_dist.segmentation.metrics import mean_dice
from hssl_dist.segmentation.study_cells import SCRATCH_ARM, StudyCell

Run = tuple[int, int]
"""Label subset and seed."""
Runs = Mapping[Run, Mapping[str, float]]
"""Dice of each patient, by run."""


class Group(NamedTuple):
    """The cells that differ in label subset and seed alone."""

    task: str
    fraction: float
    arm: str


class CellKey(NamedTuple):
    """What tells a cell from the others of a study."""

    task: str
    fraction: float
    arm: str
    subset: int
    seed: int

    @property
    def group(self) -> Group:
        """The cells it stands among."""
        return Group(self.task, self.fraction, self.arm)

    @property
    def run(self) -> Run:
        """Its label subset and seed."""
        return self.subset, self.seed


@dataclass(frozen=True, slots=True)
class Pairing:
    """Differences by (subset, seed, patient); runs of either side without a partner, named once, and how
    many patients only one of two paired runs has a Dice of.
    """

    differences: Mapping[tuple[str, ...], float]
    unpaired_runs: tuple[Run, ...]
    unpaired_patients: int


def key_of(cell: StudyCell) -> CellKey:
    """The key of a cell."""
    return CellKey(cell.task, cell.fraction, cell.arm, cell.subset, cell.seed)


def patient_dice(cell: StudyCell) -> dict[str, float]:
    """Mean Dice of each patient: over the classes of a case, then over the cases; sorted by patient.

    A case without any score counts nowhere, nor does a patient who has no other.
    """
    cases: dict[str, list[float]] = {}
    for case in cell.cases:
        if not math.isnan(dice := mean_dice(case.dice.values())):
            cases.setdefault(case.patient, []).append(dice)
    return {patient: statistics.fmean(cases[patient]) for patient in sorted(cases)}


def unlike_precisions(cells: Iterable[StudyCell]) -> dict[str, int]:
    """How many cells of a task were trained in another precision than those from scratch that they are paired
    with, by task, where there are such; what does not say its precision counts nowhere.
    """
    known = {key_of(cell): cell.precision for cell in cells if cell.precision is not None}
    beside = ((key, known.get(key._replace(arm=SCRATCH_ARM))) for key in sorted(known))
    return dict(Counter(key.task for key, scratch in beside if scratch not in (None, known[key])))


def grouped(cells: Iterable[StudyCell]) -> dict[Group, dict[Run, dict[str, float]]]:
    """Dice by patient of every run of every group, whatever the order of the cells.

    Raises ValueError if a cell is there twice, or if some were scored on other patients' part than others.
    """
    found: dict[Group, dict[Run, dict[str, float]]] = {}
    ordered = sorted(cells, key=key_of)
    if len(parts := sorted({cell.part for cell in ordered})) > 1:
        raise ValueError(f"the cells were scored on {' and '.join(parts)} patients; report one part alone")
    for cell in ordered:
        key = key_of(cell)
        runs = found.setdefault(key.group, {})
        if key.run in runs:
            raise ValueError(f"the cell {named(key)} is there twice; keep one of them")
        runs[key.run] = patient_dice(cell)
    return found


def in_common(runs: Mapping[Group, Runs]) -> dict[Group, Runs]:
    """Of every group the runs, and in them the patients, that all arms of its task and share have: means of
    the same, so that they differ as the arms do.
    """
    found: dict[Group, Runs] = {}
    for group in runs:
        arms = [runs[other] for other in runs if other[:2] == group[:2]]
        found[group] = {
            run: {
                patient: value
                for patient, value in dice.items()
                if all(patient in others[run] for others in arms)
            }
            for run, dice in runs[group].items()
            if all(run in others for others in arms)
        }
    return found


def named(key: CellKey) -> str:
    """A cell in words."""
    share = f"{100 * key.fraction:g}%"
    return f"{key.arm} on {key.task}, {share} of the labels, subset {key.subset}, seed {key.seed}"


def missing(cells: Sequence[StudyCell], planned: Collection[CellKey] | None) -> tuple[CellKey, ...]:
    """Planned cells that are not there, sorted.

    Without a plan every arm is expected with all subsets and seeds that any arm has at that task and share.
    """
    there = {key_of(cell) for cell in cells}
    if planned is None:
        arms = {key.arm for key in there}
        planned = {
            CellKey(key.task, key.fraction, arm, subset, seed)
            for key in there
            for arm in arms
            for subset, seed in _crossed(there, key.task, key.fraction)
        }
    return tuple(sorted(set(planned) - there))


def _crossed(keys: Collection[CellKey], task: str, fraction: float) -> list[Run]:
    here = [key for key in keys if (key.task, key.fraction) == (task, fraction)]
    return [(subset, seed) for subset in {key.subset for key in here} for seed in {key.seed for key in here}]


def paired(first: Runs, other: Runs, *, across_fractions: bool = False) -> Pairing:
    """First minus other, patient by patient, of runs with the same subset and seed.

    `across_fractions`: where the other side has one subset - there is one way to take all labels - it is the
    partner of every subset of the first, seed by seed.
    """
    subsets = {subset for subset, _ in other}
    only = next(iter(subsets)) if across_fractions and len(subsets) == 1 else None
    differences: dict[tuple[str, ...], float] = {}
    alone, used, unpaired = [], set(), 0
    for run, dice in sorted(first.items()):
        partner = run if only is None else (only, run[1])
        if partner not in other:
            alone.append(run)
            continue
        used.add(partner)
        unpaired += len(dice.keys() ^ other[partner].keys())
        for patient in sorted(dice.keys() & other[partner].keys()):
            differences[str(run[0]), str(run[1]), patient] = dice[patient] - other[partner][patient]
    return Pairing(differences, tuple(sorted({*alone, *(other.keys() - used)})), unpaired)
