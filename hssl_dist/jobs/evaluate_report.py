"""An evaluation's results as a page: which numbers, dots and pictures it shows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial

from hssl_dist.errors import HsslError
from hssl_dist.jobs.case_pictures import chosen_cases, shot
from hssl_dist.jobs.evaluate_outputs import Results
from hssl_dist.report.evaluation import (
    Chart,
    Column,
    ComparisonTable,
    DifferenceCell,
    EvaluationData,
    OutcomeRow,
    Picture,
    ScoreRow,
    SetTable,
    Value,
    WorstRow,
    evaluation_report,
)
from hssl_dist.report.page import flat_pairs
from hssl_dist.segmentation.intervals import Estimate, Statistic
from hssl_dist.segmentation.metrics import mean_dice
from hssl_dist.segmentation.scores import METRICS
from hssl_dist.segmentation.summary import Comparison, Difference, ScoredCase, SetSummary

_OVERALL = "all classes"
_WORST_SHOWN = 8
_CHARTED = ("dice", "nsd", "hd95_mm", "volume_error_ml")


def report(results: Results, origin: Mapping[str, object]) -> tuple[str, tuple[str, ...]]:
    """The page, and what could not be drawn on it; `origin` is the lineage to show."""
    pictures, unseen = _pictures(results)
    data = EvaluationData(
        title=f"Evaluation: {results.inputs.title}",
        facts=_facts(results),
        warnings=(*results.warnings, *unseen),
        classes=results.inputs.classes,
        columns=_columns(results),
        tables=[_table(results, summary) for summary in results.summaries],
        charts=[_chart(results, key) for key in _CHARTED],
        comparisons=[_comparison(results, comparison) for comparison in results.comparisons],
        worst=_worst(results),
        pictures=pictures,
        confidence=results.config.intervals.confidence,
        notes=_notes(results),
        lineage=flat_pairs(origin),
    )
    return evaluation_report(data), unseen


def _mean_dice(case: ScoredCase, name: str) -> float:
    """A case's mean Dice over the classes that have a score; NaN if none has."""
    return mean_dice(score.dice for score in case.scores[name].values())


# ----------------------------------------------------------------------------------------------- the numbers


def _facts(results: Results) -> list[tuple[str, str]]:
    facts = [("cases", f"{len(results.cases)}"), ("patients", f"{results.patients}")]
    for summary in results.summaries:
        dice = summary.estimates["dice"]["mean"].overall.value
        name = "mean Dice" if len(results.summaries) == 1 else f"mean Dice, {summary.name}"
        facts.append((name, "–" if math.isnan(dice) else f"{dice:.3f}"))  # noqa: RUF001
    return facts


def _columns(results: Results) -> list[Column]:
    tolerances = sorted(set(results.tolerance_mm.values()))
    ends = f"{tolerances[0]:g}" if len(tolerances) == 1 else f"{tolerances[0]:g} to {tolerances[-1]:g}"
    return [
        Column("Dice", 3),
        Column(f"Surface Dice, {ends} mm", 3),
        Column("HD95, mm", 2),
        Column("Volume error, mL", _volume_decimals(results), signed=True),
        Column("Volume error, %", 1, signed=True, percent=True),
    ]


def _volume_decimals(results: Results) -> int:
    """As many as show a thousandth of a usual structure."""
    volumes = [
        score.label_ml
        for case in results.cases
        for score in case.scores[results.inputs.sets[0]].values()
        if score.label_ml
    ]
    return min(4, max(0, 3 - math.floor(math.log10(statistics.median(volumes))))) if volumes else 1


def _table(results: Results, summary: SetSummary) -> SetTable:
    names = list(results.inputs.classes.items())

    def values(statistic: Statistic, place: int | None) -> list[Value]:
        found = [summary.estimates[metric.key][statistic] for metric in METRICS]
        return [_value(each.overall if place is None else each.each[place]) for each in found]

    rows = [
        ScoreRow(name, label, values("mean", place), values("median", place))
        for place, (label, name) in enumerate(names)
    ]
    if len(rows) > 1:
        rows.append(ScoreRow(_OVERALL, None, values("mean", None), values("median", None)))
    outcomes = [
        OutcomeRow(name, label, **dict(summary.outcomes[place])) for place, (label, name) in enumerate(names)
    ]
    return SetTable(summary.name, rows, outcomes)


def _comparison(results: Results, comparison: Comparison) -> ComparisonTable:
    rows: list[tuple[str, int | None, Sequence[DifferenceCell]]] = [
        (name, label, [_cell(comparison.each[metric.key][place]) for metric in METRICS])
        for place, (label, name) in enumerate(results.inputs.classes.items())
    ]
    if len(rows) > 1:
        rows.append((_OVERALL, None, [_cell(comparison.overall[metric.key]) for metric in METRICS]))
    unpaired = sum(difference.unpaired for difference in comparison.each["dice"])
    return ComparisonTable(comparison.first, comparison.other, rows, unpaired)


def _value(estimate: Estimate) -> Value:
    return Value(estimate.value, estimate.low, estimate.high)


def _cell(found: Difference) -> DifferenceCell:
    return DifferenceCell(_value(found.estimate), found.better, found.equal, found.worse, found.p)


def _chart(results: Results, key: str) -> Chart:
    metric = next(metric for metric in METRICS if metric.key == key)
    strips = {
        name: {
            chosen: [
                (value, score.outcome != "found")
                for case in results.cases
                if not math.isnan(value := (score := case.scores[chosen][label]).values()[key])
            ]
            for chosen in results.inputs.sets
        }
        for label, name in results.inputs.classes.items()
    }
    highest = 1.0 if metric.better == "higher" else math.inf
    return Chart(metric.title, metric.unit or metric.title, strips, highest)


def _worst(results: Results) -> list[WorstRow]:
    """The cases of the lowest Dice over all sets."""
    ranked = sorted(
        (dice, case.case, name, case)
        for case in results.cases
        for name in results.inputs.sets
        if not math.isnan(dice := _mean_dice(case, name))
    )
    return [
        WorstRow(name, case.case, case.patient, dice, _remark(results, case, name))
        for dice, _, name, case in ranked[:_WORST_SHOWN]
    ]


def _remark(results: Results, case: ScoredCase, name: str) -> str:
    """What is missed or spurious, or else the class of the lowest Dice."""
    classes, scores = results.inputs.classes, case.scores[name]
    odd = [f"{classes[v]} {s.outcome}" for v, s in scores.items() if s.outcome in ("missed", "spurious")]
    if odd:
        return ", ".join(odd)
    dice, value = min((s.dice, v) for v, s in scores.items() if not math.isnan(s.dice))
    return f"{classes[value]} {dice:.3f}"


def _notes(results: Results) -> list[tuple[str, str]]:
    classes, intervals = results.inputs.classes, results.config.intervals
    tolerances = ", ".join(f"{classes[value]} {mm:g} mm" for value, mm in results.tolerance_mm.items())
    grid = {
        "stored": "as stored: turned, resampled and cropped by preprocessing",
        "original": "that of the label files",
    }
    return [
        ("Grid", grid[results.inputs.grid]),
        ("Surface Dice", f"share of both surfaces' area within a tolerance of the other: {tolerances}"),
        ("HD95", "larger of the two directed 95th percentiles of the distances between surface voxels"),
        ("Volume error", "prediction minus label; relative to the label"),
        (
            "Intervals",
            f"{intervals.resamples} resamples of the {results.patients} patients with all their cases, "
            f"seed {intervals.seed}, expanded percentiles",
        ),
    ]


# ---------------------------------------------------------------------------------------------- the pictures


def _pictures(results: Results) -> tuple[dict[str, list[Picture]], tuple[str, ...]]:
    """Of each set its best, median and worst case, and what could not be drawn."""
    pictures: dict[str, list[Picture]] = {}
    unseen: list[str] = []
    for name in results.inputs.sets:
        for rank, case in chosen_cases(results.cases, partial(_mean_dice, name=name)).items():
            try:
                image = results.inputs.image(case.case)
            except HsslError as error:
                unseen.append(f"no picture of case {case.case!r}: {error}")
                continue
            if image is None:
                if results.config.images is not None:
                    unseen.append(f"no picture of case {case.case!r}: its image is not in the folder")
                continue
            example = results.inputs.example(case.case)
            png = shot(image, example.label, example.predictions[name], example.spacing_mm)
            caption = f"{rank.capitalize()}: {case.case}, Dice {_mean_dice(case, name):.3f}"
            pictures.setdefault(name, []).append(Picture(png, caption))
    return pictures, tuple(dict.fromkeys(unseen))
