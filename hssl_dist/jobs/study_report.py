"""A study's results as a page: which numbers it shows, and what it says of them in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hssl_dist.jobs.study_context import StudyContext
from hssl_dist.report.evaluation import Value
from hssl_dist.report.page import flat_pairs
from hssl_dist.report.study import ConvergenceRow, DiceRow, DifferenceRow, PowerRow, StudyData, study_report
from hssl_dist.report.study_words import Statement, between, converged, gain, headline, share, to_all_labels
from hssl_dist.segmentation.intervals import HierarchicalEstimate
from hssl_dist.segmentation.study import ALL_LABELS, Contrast, Row, StudyResults, Verdict
from hssl_dist.segmentation.study_cells import SCRATCH_ARM
from hssl_dist.segmentation.study_convergence import CONVERGED_BELOW, Convergence
from hssl_dist.segmentation.study_pairs import Group, Run, named

_TENTH = 0.1
"""The share of the labels at which the gap to all of them is told."""
_NOTHING = Value(math.nan)


def study_page(results: StudyResults, context: StudyContext) -> str:
    """The report of a study as one HTML page."""
    named_arms = dict.fromkeys((SCRATCH_ARM, *results.arms, results.questions.main_arm))
    words = _Words(results, {arm: context.titles.get(arm, arm) for arm in named_arms})
    verdicts = [(verdict.contrast.first.task, words.statements(verdict)) for verdict in results.verdicts]
    data = StudyData(
        title=context.title,
        lead=words.headline([statements[0] for _, statements in verdicts]),
        part=results.part,
        main_arm=results.questions.main_arm,
        titles=words.titles,
        arms=context.arms,
        reference=SCRATCH_ARM,
        facts=_facts(results),
        verdicts=verdicts,
        missing=[named(key) for key in results.missing],
        unpaired=[*words.left_out(), *words.unpaired()],
        rows=[_dice_row(row) for row in results.rows],
        pairs=[_difference_row(pair) for pair in results.pairs],
        gaps=[_difference_row(gap) for gap in results.gaps],
        convergence=words.ordered(),
        power=[_power_row(row) for row in results.rows if row.power is not None],
        confidence=results.settings.confidence,
        difference=results.questions.difference,
        comparisons=results.comparisons,
        converged_below=CONVERGED_BELOW,
        cases=context.cases,
        embeddings=context.embeddings,
        health=context.health,
        selection=context.selection,
        warnings=context.warnings,
        notes=_notes(results),
        lineage=[("config", context.config_hash), *flat_pairs(context.lineage)],
    )
    return study_report(data)


# ------------------------------------------------------------------------------------------------ in words


@dataclass(frozen=True, slots=True)
class _Words:
    """What results say, with arms called by their titles."""

    results: StudyResults
    titles: Mapping[str, str]

    def headline(self, gains: Sequence[Statement]) -> str:
        """All primary comparisons in a sentence; nothing without any."""
        main_arm = self.results.questions.main_arm
        return headline(self.titles[main_arm], self.titles[SCRATCH_ARM], gains) if gains else ""

    def statements(self, verdict: Verdict) -> list[Statement]:
        """The primary comparison of a task, then what bears on it."""
        first = verdict.contrast.first
        level = f"{self.results.settings.confidence:.0%}"
        arm, scratch = self.titles[first.arm], self.titles[SCRATCH_ARM]
        found = value_of(verdict.contrast.estimate)
        tests = sum(not math.isnan(other.p_primary) for other in self.results.verdicts)
        said = [gain(arm, scratch, first.fraction, found, verdict.p_primary, tests, level)]
        said += [
            between(
                self.titles[pair.first.arm],
                self.titles[pair.other.arm],
                first.fraction,
                value_of(pair.estimate),
                pair.p,
                level,
            )
            for pair in self.results.pairs
            if (pair.first.task, pair.first.fraction) == (first.task, first.fraction)
        ]
        goal = (Group(first.task, _TENTH, first.arm), Group(first.task, ALL_LABELS, SCRATCH_ARM))
        said += [
            to_all_labels(arm, scratch, _TENTH, value_of(gap.estimate), level)
            for gap in self.results.gaps
            if (gap.first, gap.other) == goal
        ]
        said += [
            converged(scratch, first.fraction, found.converged, _gain(found), CONVERGED_BELOW)
            for found in self.results.convergence
            if found.group == first._replace(arm=SCRATCH_ARM)
        ]
        return said

    def left_out(self) -> list[str]:
        """A line for every task and share whose arms have not all the same runs."""
        groups: dict[tuple[str, float], list[Row]] = {}
        for row in self.results.rows:
            groups.setdefault((row.group.task, row.group.fraction), []).append(row)
        said = []
        for (task, fraction), rows in groups.items():
            apart = [f"{self.titles[row.group.arm]} {_listed(row.left_out)}" for row in rows if row.left_out]
            if apart:
                runs = f"{rows[0].runs} run{'' if rows[0].runs == 1 else 's'}"
                said.append(
                    f"{task}, {share(fraction)} of the labels: means and curves are of the {runs} that all "
                    f"arms have; left out of them: {'; '.join(apart)}"
                )
        return said

    def unpaired(self) -> list[str]:
        """A line for every difference to which runs or patients could not be added for want of a partner."""
        to_scratch = [row.difference for row in self.results.rows if row.difference is not None]
        return [
            self._unpaired(contrast)
            for contrast in (*to_scratch, *self.results.pairs, *self.results.gaps)
            if contrast.unpaired_runs or contrast.unpaired_patients
        ]

    def _unpaired(self, contrast: Contrast) -> str:
        first, other = contrast.first, contrast.other
        counts = [
            f"{count} {what}{'' if count == 1 else 's'}"
            for count, what in (
                (len(contrast.unpaired_runs), "run"),
                (contrast.unpaired_patients, "Dice of a patient"),
            )
            if count
        ]
        runs = _listed(contrast.unpaired_runs)
        return (
            f"{first.task}, {self.titles[first.arm]} at {share(first.fraction)} minus "
            f"{self.titles[other.arm]} at {share(other.fraction)}: left out {' and '.join(counts)} without a "
            f"partner{f' ({runs})' if runs else ''}"
        )

    def ordered(self) -> list[ConvergenceRow]:
        """Convergence in the order of the table."""
        found = {entry.group: entry for entry in self.results.convergence}
        return [_convergence_row(found[row.group]) for row in self.results.rows if row.group in found]


def _listed(runs: Sequence[Run]) -> str:
    return ", ".join(f"subset {subset} seed {seed}" for subset, seed in runs)


# -------------------------------------------------------------------------------------------- the numbers


def value_of(estimate: HierarchicalEstimate) -> Value:
    """An estimate for the page."""
    return Value(estimate.value, estimate.low, estimate.high)


def _facts(results: StudyResults) -> list[tuple[str, str]]:
    subsets, seeds = (max(getattr(row, key) for row in results.rows) for key in ("subsets", "seeds"))
    patients: dict[str, int] = {}
    for row in results.rows:
        patients[row.group.task] = max(row.patients, patients.get(row.group.task, 0))
    return [
        ("cells", f"{results.cells} of {results.cells + len(results.missing)}"),
        ("arms", f"{len(results.arms)}"),
        ("label subsets", f"{subsets}"),
        ("seeds", f"{seeds}"),
        (f"{results.part} patients", f"{sum(patients.values())}"),
    ]


def _dice_row(row: Row) -> DiceRow:
    found = row.difference
    return DiceRow(
        *row.group,
        labelled=row.labelled,
        subsets=row.subsets,
        seeds=row.seeds,
        patients=row.patients,
        dice=value_of(row.dice),
        sd=row.sd,
        difference=None if found is None else value_of(found.estimate),
        p=math.nan if found is None else found.p,
        p_holm=math.nan if found is None else found.p_holm,
    )


def _difference_row(found: Contrast) -> DifferenceRow:
    return DifferenceRow(
        found.first.task,
        found.first.arm,
        found.first.fraction,
        found.other.arm,
        found.other.fraction,
        value_of(found.estimate),
        found.estimate.sizes,
        found.p_holm,
    )


def _convergence_row(found: Convergence) -> ConvergenceRow:
    return ConvergenceRow(
        *found.group, found.runs, found.curve, _gain(found), found.converged, found.best_step
    )


def _gain(found: Convergence) -> Value:
    return _NOTHING if found.gain is None else value_of(found.gain)


def _power_row(row: Row) -> PowerRow:
    if row.power is None:
        raise ValueError(f"{row.group} has no power")
    found = row.power
    return PowerRow(*row.group, found.sizes, found.unseen, found.standard_error, found.power, found.needed)


def _notes(results: StudyResults) -> list[tuple[str, str]]:
    settings = results.settings
    return [
        ("Dice", "mean over the classes of a case that have one, then over the cases of a patient"),
        ("Difference", "of the same patient with the same label subset and seed, then the mean of all"),
        ("Pairs", "subsets × seeds × patients"),  # noqa: RUF001
        (
            "Intervals",
            f"label subsets, seeds and patients drawn anew, {settings.resamples} times, seed {settings.seed} "
            "(pigeonhole bootstrap, tails of a t distribution with Satterthwaite's degrees of freedom)",
        ),
        (
            "p",
            f"of the difference over its bootstrap error, two-sided; Holm: adjusted over all "
            f"{results.comparisons} differences to scratch and between arms",
        ),
        ("Details", "docs/study-statistics.md"),
    ]
