"""An evaluation's results, as a table with a row per set, case and class, and as JSON; and where they go."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hssl_dist import files
from hssl_dist.config.evaluate import EvaluateConfig
from hssl_dist.errors import ConfigError
from hssl_dist.jobs.evaluate_inputs import Inputs
from hssl_dist.jobs.lineage import lineage
from hssl_dist.segmentation.intervals import Estimate
from hssl_dist.segmentation.scores import METRICS
from hssl_dist.segmentation.summary import (
    Comparison,
    Difference,
    ScoredCase,
    SetSummary,
)

SCORES, TABLE, PAGE = "scores.json", "scores.csv", "report.html"
_WHERE_NOT_WHAT = {
    "store", "labels", "predictions", "images", "output", "overwrite", "runs", "tracking", "threads",
}  # fmt: skip
"""Keys that say where things lie, not what is computed: not hashed into the lineage."""
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Results:
    """All an evaluation found; `tolerance_mm` is each class's, by label value."""

    config: EvaluateConfig
    inputs: Inputs
    tolerance_mm: Mapping[int, float]
    cases: tuple[ScoredCase, ...]
    summaries: tuple[SetSummary, ...]
    comparisons: tuple[Comparison, ...]
    warnings: tuple[str, ...]

    @property
    def patients(self) -> int:
        """How many patients the cases are of."""
        return len({case.patient for case in self.cases})


def check_output(config: EvaluateConfig, inputs: Inputs) -> None:
    """Raise ConfigError if the output has the scores of another input, which `overwrite` allows to replace,
    or files of these names that no evaluation wrote.
    """
    output = f"output {files.shown(config.output)}"
    if files.exists(config.output) and not files.is_folder(config.output):
        raise ConfigError(f"{output} is a file; choose a folder")
    there = [name for name in (SCORES, TABLE, PAGE) if files.exists(files.join(config.output, name))]
    if not there:
        return
    try:
        scores = json.loads(files.read(files.join(config.output, SCORES)))
        held = scores.get("scored", scores["title"])
    except (FileNotFoundError, ValueError, KeyError, AttributeError, TypeError):
        raise ConfigError(
            f"{output} holds a {there[0]} that is not from hssl evaluate; move it, or choose another output"
        ) from None
    if held != inputs.scored and not config.overwrite:
        raise ConfigError(
            f"{output} holds the scores of {held}, these would be of {inputs.scored}; choose another output, "
            "or replace them with --overwrite true"
        )


def as_csv(results: Results) -> str:
    """A row per set, case and class; a score that there is none of is empty."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    keys = [metric.key for metric in METRICS]
    writer.writerow(
        ("set", "case", "patient", "class", "value", "outcome", *keys, "label_ml", "prediction_ml")
    )
    for name in results.inputs.sets:
        for case in results.cases:
            for value, score in case.scores[name].items():
                numbers = (*score.values().values(), score.label_ml, score.prediction_ml)
                cells = ["" if math.isnan(number) else f"{number:.{_DIGITS}f}" for number in numbers]
                label = results.inputs.classes[value]
                writer.writerow((name, case.case, case.patient, label, value, score.outcome, *cells))
    return stream.getvalue()


def as_json(results: Results) -> dict[str, Any]:
    """Aggregates with their intervals, comparisons, settings, lineage and all scores; null for none."""
    config, inputs = results.config, results.inputs
    origin = lineage(config.hash(_WHERE_NOT_WHAT))
    return {
        "title": inputs.title,
        "scored": inputs.scored,
        "grid": inputs.grid,
        "n_cases": len(results.cases),
        "n_patients": results.patients,
        "classes": {str(value): name for value, name in inputs.classes.items()},
        "settings": {
            "tolerance_mm": {inputs.classes[value]: mm for value, mm in results.tolerance_mm.items()},
            "intervals": config.intervals.model_dump(mode="json"),
        },
        "lineage": {
            **inputs.lineage,
            "config_hash": origin.config_hash,
            "code_version": origin.code_version,
        },
        "warnings": list(results.warnings),
        "sets": {summary.name: _set(results, summary) for summary in results.summaries},
        "comparisons": [_comparison(results, comparison) for comparison in results.comparisons],
        "cases": [_case(results, name, case) for name in inputs.sets for case in results.cases],
    }


def to_text(scores: Mapping[str, Any]) -> str:
    """JSON for a file."""
    return json.dumps(scores, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def flat_dice(results: Results, place: int) -> dict[str, float | None]:
    """Mean Dice of a set: `mean` over the classes, then each class by its name."""
    means = results.summaries[place].estimates["dice"]["mean"]
    names = results.inputs.classes.values()
    each = {name: known(found.value) for name, found in zip(names, means.each, strict=True)}
    return {"mean": known(means.overall.value), **each}


def known(value: float) -> float | None:
    """The value, or None for NaN."""
    return None if math.isnan(value) else value


def _set(results: Results, summary: SetSummary) -> dict[str, Any]:
    def over_metrics(place: int | None) -> dict[str, Any]:
        return {
            metric.key: {
                statistic: _estimate(found.overall if place is None else found.each[place])
                for statistic, found in summary.estimates[metric.key].items()
            }
            for metric in METRICS
        }

    return {
        "overall": over_metrics(None),
        "classes": {
            name: {**over_metrics(place), "outcomes": dict(summary.outcomes[place])}
            for place, name in enumerate(results.inputs.classes.values())
        },
    }


def _comparison(results: Results, comparison: Comparison) -> dict[str, Any]:
    names = results.inputs.classes.values()
    return {
        "first": comparison.first,
        "other": comparison.other,
        "overall": {metric.key: _difference(comparison.overall[metric.key]) for metric in METRICS},
        "classes": {
            name: {metric.key: _difference(comparison.each[metric.key][place]) for metric in METRICS}
            for place, name in enumerate(names)
        },
    }


def _case(results: Results, name: str, case: ScoredCase) -> dict[str, Any]:
    """One case of one set: by metric, then by class."""
    classes, scores = results.inputs.classes, case.scores[name]
    return {
        "set": name,
        "case": case.case,
        "patient": case.patient,
        "outcome": {classes[value]: score.outcome for value, score in scores.items()},
        **{
            metric.key: {classes[value]: known(score.values()[metric.key]) for value, score in scores.items()}
            for metric in METRICS
        },
    }


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return {
        "value": known(estimate.value),
        "low": known(estimate.low),
        "high": known(estimate.high),
        "patients": estimate.patients,
    }


def _difference(difference: Difference) -> dict[str, Any]:
    return {
        **_estimate(difference.estimate),
        "better": difference.better,
        "equal": difference.equal,
        "worse": difference.worse,
        "p": known(difference.p),
        "unpaired": difference.unpaired,
    }
