"""The statistics of a label-efficiency study: means, paired differences, convergence, power.

cells -> Dice by patient and run -> per task, share and arm: mean and spread
                                 -> paired differences: to scratch, between arms, to all labels
      -> validation curves       -> what the last quarter of the steps still gave

    study_pairs.py        patients' Dice, pairs, missing cells
    study_convergence.py  curves
    study_power.py        variance components, power
    multiplicity.py       p, Holm's adjustment

docs/study-statistics.md says what is estimated and what it does not say.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from hssl_dist.config.evaluate import IntervalConfig
from hssl_dist.segmentation.intervals import HierarchicalEstimate, hierarchical
from hssl_dist.segmentation.multiplicity import holm, two_sided_p
from hssl_dist.segmentation.study_cells import SCRATCH_ARM, StudyCell
from hssl_dist.segmentation.study_convergence import Convergence, convergence
from hssl_dist.segmentation.study_pairs import (
    CellKey,
    Group,
    Pairing,
    Run,
    Runs,
    grouped,
    in_common,
    key_of,
    missing,
    paired,
)
from hssl_dist.segmentation.study_power import Power, power_of

ALL_LABELS = 1.0

_NONE = HierarchicalEstimate(math.nan, math.nan, math.nan, (0, 0, 0), math.nan, math.nan)
"""Of a difference without a pair."""


@dataclass(frozen=True, slots=True)
class Questions:
    """What a study was made to answer, fixed before its cells are seen.

    `main_arm` against scratch at the smallest share that is planned, once per task, are the primary
    comparisons, also where cells for one are missing: its answer is not known then. `pairs` are differences,
    first minus second, between other arms. `arms` is their order on the page; those it lacks follow by name.
    `difference` is the Dice the power is computed for.
    """

    main_arm: str
    pairs: tuple[tuple[str, str], ...] = ()
    arms: tuple[str, ...] = ()
    difference: float = 0.01


@dataclass(frozen=True, slots=True)
class Contrast:
    """A mean paired difference: group `first` minus group `other`.

    `p_holm` is adjusted over all differences to scratch and between arms; NaN for gaps to all labels, which
    are estimates and no tests. `unpaired_runs` are the (subset, seed) of either side without a partner.
    """

    first: Group
    other: Group
    estimate: HierarchicalEstimate
    unpaired_runs: tuple[Run, ...]
    unpaired_patients: int
    p: float
    p_holm: float = math.nan


@dataclass(frozen=True, slots=True)
class Row:
    """Mean foreground Dice of a group with its interval, and its spread.

    All of it is of the runs that every arm of the task and share has; `left_out` are its others.
    `sd` is over runs (label subset and seed), `sd_subsets` over subsets' means, `sd_seeds` over seeds'; NaN
    for one unit. `labelled` is the smallest and largest number of patients with a label. `difference` is that
    to scratch, of all pairs there are; None for scratch itself.
    """

    group: Group
    subsets: int
    seeds: int
    patients: int
    runs: int
    left_out: tuple[Run, ...]
    labelled: tuple[int, int]
    dice: HierarchicalEstimate
    sd: float
    sd_subsets: float
    sd_seeds: float
    difference: Contrast | None
    power: Power | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A primary comparison, and its p adjusted over the primary comparisons alone."""

    contrast: Contrast
    p_primary: float


@dataclass(frozen=True, slots=True)
class StudyResults:
    """All the statistics; `gaps` are an arm at fewer labels minus itself and minus scratch at all labels."""

    part: str
    questions: Questions
    settings: IntervalConfig
    tasks: tuple[str, ...]
    arms: tuple[str, ...]
    fractions: tuple[float, ...]
    cells: int
    missing: tuple[CellKey, ...]
    rows: tuple[Row, ...]
    pairs: tuple[Contrast, ...]
    gaps: tuple[Contrast, ...]
    convergence: tuple[Convergence, ...]
    verdicts: tuple[Verdict, ...]
    comparisons: int


def summarise_study(
    cells: Sequence[StudyCell],
    questions: Questions,
    settings: IntervalConfig,
    planned: Collection[CellKey] | None = None,
) -> StudyResults:
    """All statistics of a study, whatever the order of its cells; `planned` are the cells it should have.

    Raises ValueError if there is no cell, if one is there twice, or if parts are mixed.
    """
    if not cells:
        raise ValueError("there is no cell to report; run the study first")
    runs = grouped(cells)
    arms = _ordered({group.arm for group in runs}, questions.arms)
    tasks, fractions = sorted({group.task for group in runs}), sorted({group.fraction for group in runs})
    groups = [Group(task, fraction, arm) for task in tasks for fraction in fractions for arm in arms]
    groups = [group for group in groups if group in runs]
    common = in_common(runs)
    work = _Work(runs, common, settings)
    to_scratch = {
        group: contrast
        for group in groups
        if group.arm != SCRATCH_ARM and (contrast := work.contrast(group, group._replace(arm=SCRATCH_ARM)))
    }
    pairs = [
        contrast
        for group in groups
        for first, second in questions.pairs
        if group.arm == first and (contrast := work.contrast(group, group._replace(arm=second)))
    ]
    adjusted = _adjusted([*to_scratch.values(), *pairs])
    to_scratch = dict(zip(to_scratch, adjusted[: len(to_scratch)], strict=True))
    labelled = _labelled(cells)
    return StudyResults(
        part=cells[0].part,
        questions=questions,
        settings=settings,
        tasks=tuple(tasks),
        arms=tuple(arms),
        fractions=tuple(fractions),
        cells=len(cells),
        missing=missing(cells, planned),
        rows=tuple(
            work.row(group, labelled[group], to_scratch.get(group), questions.difference) for group in groups
        ),
        pairs=tuple(adjusted[len(to_scratch) :]),
        gaps=tuple(work.gaps(groups)),
        convergence=convergence(
            [cell for cell in cells if key_of(cell).run in common[key_of(cell).group]], settings
        ),
        verdicts=_verdicts(
            _claims(questions.main_arm, planned or [key_of(cell) for cell in cells]), to_scratch
        ),
        comparisons=sum(not math.isnan(contrast.p) for contrast in adjusted),
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """The runs of all groups, those of them that all arms have, and how intervals are made."""

    runs: Mapping[Group, Runs]
    common: Mapping[Group, Runs]
    settings: IntervalConfig

    def row(
        self, group: Group, labelled: tuple[int, int], difference: Contrast | None, true_difference: float
    ) -> Row:
        """A group's means and spread, with its difference and the power to see a true one of that size."""
        runs = self.common[group]
        values: dict[tuple[str, ...], float] = {
            (str(run[0]), str(run[1]), name): dice for run, of in runs.items() for name, dice in of.items()
        }
        estimate = hierarchical(values, self.settings) if values else _NONE
        means = {run: statistics.fmean(dice.values()) for run, dice in runs.items() if dice}
        power = None
        if difference is not None:
            pairing = self._paired(difference.first, difference.other)
            power = power_of(pairing.differences, true_difference, self.settings.confidence)
        return Row(
            group,
            subsets=len({subset for subset, _ in runs}),
            seeds=len({seed for _, seed in runs}),
            patients=len({patient for dice in runs.values() for patient in dice}),
            runs=len(runs),
            left_out=tuple(sorted(self.runs[group].keys() - runs.keys())),
            labelled=labelled,
            dice=estimate,
            sd=_sd(means.values()),
            sd_subsets=_sd_of_level(means, 0),
            sd_seeds=_sd_of_level(means, 1),
            difference=difference,
            power=power,
        )

    def contrast(self, first: Group, other: Group) -> Contrast | None:
        """First minus other; None if the study has no such other group."""
        if other not in self.runs:
            return None
        pairing = self._paired(first, other)
        estimate = hierarchical(pairing.differences, self.settings) if pairing.differences else _NONE
        return Contrast(
            first,
            other,
            estimate,
            pairing.unpaired_runs,
            pairing.unpaired_patients,
            two_sided_p(estimate),
        )

    def gaps(self, groups: Iterable[Group]) -> list[Contrast]:
        """Each group of fewer labels minus its own arm, and minus scratch, with all labels."""
        found = [
            self.contrast(group, Group(group.task, ALL_LABELS, arm))
            for group in groups
            if group.fraction < ALL_LABELS
            for arm in dict.fromkeys((group.arm, SCRATCH_ARM))
        ]
        return [replace(gap, p=math.nan) for gap in found if gap is not None]

    def _paired(self, first: Group, other: Group) -> Pairing:
        across = first.fraction != other.fraction
        return paired(self.runs[first], self.runs[other], across_fractions=across)


# ----------------------------------------------------------------------------------------------------- pieces


def _ordered(arms: Collection[str], wanted: Sequence[str]) -> list[str]:
    """Scratch, then as wanted, then by name."""
    order = [SCRATCH_ARM, *wanted, *sorted(arms)]
    return [arm for arm in dict.fromkeys(order) if arm in arms]


def _adjusted(contrasts: Sequence[Contrast]) -> list[Contrast]:
    adjusted = holm([contrast.p for contrast in contrasts])
    return [replace(contrast, p_holm=p) for contrast, p in zip(contrasts, adjusted, strict=True)]


def _labelled(cells: Iterable[StudyCell]) -> dict[Group, tuple[int, int]]:
    counts: dict[Group, list[int]] = {}
    for cell in cells:
        counts.setdefault(Group(cell.task, cell.fraction, cell.arm), []).append(len(cell.labelled))
    return {group: (min(found), max(found)) for group, found in counts.items()}


def _claims(main_arm: str, planned: Iterable[CellKey]) -> list[Group]:
    """The main arm of each task that has it, at its smallest share there."""
    shares: dict[str, set[float]] = {}
    for key in planned:
        if key.arm == main_arm:
            shares.setdefault(key.task, set()).add(key.fraction)
    return [Group(task, min(shares[task]), main_arm) for task in sorted(shares)]


def _verdicts(claims: Iterable[Group], to_scratch: Mapping[Group, Contrast]) -> tuple[Verdict, ...]:
    """Of each claim the difference to scratch; NaN where cells for it are missing."""
    primary = [
        to_scratch.get(group) or Contrast(group, group._replace(arm=SCRATCH_ARM), _NONE, (), 0, math.nan)
        for group in claims
    ]
    adjusted = holm([contrast.p for contrast in primary])
    return tuple(Verdict(contrast, p) for contrast, p in zip(primary, adjusted, strict=True))


def _sd_of_level(means: Mapping[Run, float], level: int) -> float:
    """Standard deviation over a level's units, each the mean of its runs."""
    units: dict[int, list[float]] = {}
    for run, mean in sorted(means.items()):
        units.setdefault(run[level], []).append(mean)
    return _sd([statistics.fmean(found) for found in units.values()])


def _sd(values: Collection[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan
