"""`hssl evaluate`: Dice, surface distances and volumes of predicted labels, with intervals over patients.

a model and a store, or folders of label maps -> scores of each case and class -> means, medians and paired
differences with intervals -> `scores.csv`, `scores.json`, `report.html`, and the model's MLflow run

    evaluate_inputs.py   what is asked of an input
    evaluate_store.py    a model and a store
    evaluate_patients.py which of the store's patients
    evaluate_folders.py  folders of label maps
    evaluate_outputs.py  the table and the JSON
    evaluate_report.py   the page
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from hssl_dist import files
from hssl_dist.config.evaluate import EvaluateConfig, SurfaceDiceConfig
from hssl_dist.console import Console
from hssl_dist.errors import AccessError, ConfigError, StorageError
from hssl_dist.jobs.evaluate_folders import FolderInputs
from hssl_dist.jobs.evaluate_inputs import Inputs
from hssl_dist.jobs.evaluate_outputs import (
    PAGE,
    SCORES,
    TABLE,
    Results,
    as_csv,
    as_json,
    check_output,
    flat_dice,
    known,
    to_text,
)
from hssl_dist.jobs.evaluate_report import report
from hssl_dist.jobs.evaluate_store import StoredInputs
from hssl_dist.jobs.hardware import use_hardware
from hssl_dist.jobs.looks import Look, now, write_look
from hssl_dist.records import Outcome, content_hash
from hssl_dist.segmentation.scores import METRICS, score_case
from hssl_dist.segmentation.summary import ScoredCase, compare, summarise
from hssl_dist.tracking import attach_run


def run(config: EvaluateConfig, console: Console) -> Outcome:
    """Score all cases, write `scores.json`, `scores.csv` and `report.html`, and log them to the model's run.

    Of a model it is noted first whom it is scored on. Raises the errors of the inputs (`StoredInputs`,
    `FolderInputs`), ConfigError for a tolerance of a class that there is none of and for an output that has
    the scores of something else, and StorageError for one that cannot be written.
    """
    start_s = time.monotonic()
    inputs = _open(config, use_hardware(config.threads), console)
    check_output(config, inputs)
    if isinstance(inputs, StoredInputs) and config.runs is not None:
        _note(config.runs, inputs, console)
    results = _evaluate(config, inputs, console)
    scores, table = as_json(results), as_csv(results)
    page, unseen = report(results, scores["lineage"])
    with files.writing(config.output):
        # The JSON first: it says of what the others are, should they not come to be written.
        for name, text in ((SCORES, to_text(scores)), (TABLE, table), (PAGE, page)):
            files.write(files.join(config.output, name), text.encode())
    if isinstance(inputs, StoredInputs) and inputs.run_id is not None:
        _log(config, inputs, inputs.run_id, results, (scores, table, page), console)
    return _outcome(results, scores, unseen, round(time.monotonic() - start_s, 1))


def _open(config: EvaluateConfig, device: torch.device, console: Console) -> Inputs:
    if config.model is not None:
        return StoredInputs(config, config.model, device)
    if config.labels is None:
        raise ConfigError("`predictions` need the true `labels` beside them; give their folder")
    return FolderInputs(config, config.labels, console.warn)


def _note(runs: str, inputs: StoredInputs, console: Console) -> None:
    """Write that these patients are looked at, for studies that report on them later."""
    look = Look(
        study=inputs.uri,
        config=content_hash(inputs.uri),
        part=inputs.part,
        patients=inputs.patients,
        first_at=now(),
        by="evaluate",
    )
    try:
        write_look(runs, inputs.manifest.dataset, look)
    except (AccessError, StorageError) as error:
        console.warn(f"a study cannot tell of this look at its patients: {error}")


def _evaluate(config: EvaluateConfig, inputs: Inputs, console: Console) -> Results:
    tolerance_mm = _tolerances(config.surface_dice, inputs.classes)
    cases, finest_mm = [], {}
    with console.track(f"scoring {inputs.title}", len(inputs.cases)) as advance:
        for example in inputs.examples():
            scores = {
                name: score_case(prediction, example.label, example.spacing_mm, tolerance_mm)
                for name, prediction in example.predictions.items()
            }
            cases.append(ScoredCase(example.case, example.patient, scores))
            finest_mm[example.case] = min(example.spacing_mm)
            advance(1)
    values, settings = tuple(inputs.classes), config.intervals
    first, *others = inputs.sets
    return Results(
        config,
        inputs,
        tolerance_mm,
        tuple(cases),
        tuple(summarise(cases, name, values, settings) for name in inputs.sets),
        tuple(compare(cases, first, other, values, settings) for other in others),
        (*inputs.warnings, *_coarse(min(tolerance_mm.values()), finest_mm)),
    )


def _tolerances(config: SurfaceDiceConfig, classes: Mapping[int, str]) -> dict[int, float]:
    if unknown := sorted(set(config.class_tolerance_mm) - set(classes.values())):
        raise ConfigError(
            f"surface_dice.class_tolerance_mm names {unknown[0]!r}; the classes are "
            f"{', '.join(classes.values())}"
        )
    return {
        value: config.class_tolerance_mm.get(name, config.tolerance_mm) for value, name in classes.items()
    }


def _coarse(tolerance_mm: float, finest_mm: Mapping[str, float]) -> tuple[str, ...]:
    """A warning if the smallest tolerance is less than one voxel."""
    coarse = [edge for edge in finest_mm.values() if edge > tolerance_mm]
    if not coarse:
        return ()
    return (
        f"surface Dice tolerates {tolerance_mm:g} mm, less than a voxel's shortest edge in {len(coarse)} of "
        f"{len(finest_mm)} cases (up to {max(coarse):.3g} mm): there a surface one voxel off is wrong; set "
        "surface_dice.tolerance_mm if that is too strict",
    )


# ----------------------------------------------------------------------------------------------- what is told


def _log(
    config: EvaluateConfig,
    inputs: StoredInputs,
    run_id: str,
    results: Results,
    texts: tuple[dict[str, Any], str, str],
    console: Console,
) -> None:
    """To the run the model came from; while the server does not answer it waits in the output folder."""
    tracked = attach_run(config.tracking, run_id, warn=console.warn, folder=config.output)
    dataset, part = inputs.manifest.dataset, inputs.part
    scores, table, page = texts
    tracked.log_text(f"evaluation/{part}_{dataset}/{TABLE}", table)
    tracked.log_json(f"evaluation/{part}_{dataset}/{SCORES}", scores)
    tracked.log_text(f"evaluation/{part}_{dataset}/{PAGE}", page)
    prefix = part if dataset == inputs.card.dataset else f"{part}_{dataset}"
    named = {}
    for metric in METRICS:
        means = results.summaries[0].estimates[metric.key]["mean"]
        named[f"{prefix}_{metric.key}"] = known(means.overall.value)
        for name, estimate in zip(results.inputs.classes.values(), means.each, strict=True):
            named[f"{prefix}_{metric.key}/{name}"] = known(estimate.value)
    step = int(inputs.card.extra.get("best_step", 0))
    tracked.log_metrics(step, {key: value for key, value in named.items() if value is not None}, again=True)
    tracked.close()


def _outcome(results: Results, scores: Mapping[str, Any], unseen: tuple[str, ...], seconds: float) -> Outcome:
    output = results.config.output
    dice = {name: flat_dice(results, place) for place, name in enumerate(results.inputs.sets)}
    first = dice[results.inputs.sets[0]]
    return Outcome(
        summary={
            **{key: scores[key] for key in ("n_cases", "n_patients", "grid")},
            **scores["lineage"],
            "dice_mean": first.pop("mean"),
            "dice": first,
            "sets": {name: scores["sets"][name]["overall"] for name in results.inputs.sets},
            "csv": files.join(output, TABLE),
            "json": files.join(output, SCORES),
            "report": files.join(output, PAGE),
            "seconds": seconds,
        },
        lines=(
            *(_line(results, place) for place in range(len(results.inputs.sets))),
            f"report: {files.join(output, PAGE)}; per case: {files.join(output, TABLE)}",
        ),
        warnings=(*results.warnings, *unseen),
    )


def _line(results: Results, place: int) -> str:
    """One set in a line, with its interval and its classes."""
    summary = results.summaries[place]
    of = results.inputs.title if len(results.inputs.sets) == 1 else summary.name
    means = summary.estimates["dice"]["mean"]
    overall, dice = means.overall, flat_dice(results, place)
    dice.pop("mean")
    shown = "-" if known(overall.value) is None else f"{overall.value:.3f}"
    if known(overall.low) is not None:
        shown += f" [{overall.low:.3f}, {overall.high:.3f}]"
    each = ", ".join(f"{name} {'-' if value is None else f'{value:.3f}'}" for name, value in dice.items())
    hd95 = known(summary.estimates["hd95_mm"]["mean"].overall.value)
    distance = "" if hd95 is None else f", HD95 {hd95:.2f} mm"
    return f"{of}, {len(results.cases)} cases: Dice {shown} ({each}){distance}"
