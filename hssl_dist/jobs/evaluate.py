"""`hssl evaluate`: Dice of a fine-tuned network on patients it was not trained on.

Scores are on the stored grid: the prediction is compared with the label as it was oriented, resampled and
cropped by preprocessing, not with the source file's.
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from hssl_dist import files
from hssl_dist.config.finetune import EvaluateConfig
from hssl_dist.config.parts import SplitConfig
from hssl_dist.console import Console
from hssl_dist.errors import CheckpointError, ConfigError, MissingError
from hssl_dist.jobs.hardware import use_hardware
from hssl_dist.networks.unet import ResidualUNet
from hssl_dist.networks.weights import ModelCard, build_from_card, load_model, load_state
from hssl_dist.records import CaseRecord, Manifest, Outcome
from hssl_dist.sampling.splits import labelled_cases, labelled_patients, split_manifest
from hssl_dist.segmentation import DiceMeans, dice_means
from hssl_dist.store import open_reader, read_manifest
from hssl_dist.tracking import FetchedModel, attach_run, fetch_model
from hssl_dist.training.validation import score_cases

_CHANGED = (
    "dataset {!r} has changed since the model was trained; the patients scored are those set aside then"
)


def run(config: EvaluateConfig, console: Console) -> Outcome:
    """Score the patients, write `scores.csv` and `scores.json`, and log them to the model's run.

    Raises MissingError for a model, dataset or patient that is not there, ConfigError for a dataset that
    does not suit the model, CheckpointError for a model that cannot segment.
    """
    start_s = time.monotonic()
    device = use_hardware(config.threads)
    fetched = fetch_model(config.tracking, config.model)
    card, state = load_model(fetched.folder)
    network = build_from_card(card)
    load_state(network, state)
    manifest = read_manifest(config.store.url, _dataset_of(config, card))
    _check_suits(card, manifest)
    cases = _cases_to_score(config, card, manifest)
    scores = _score(config, card, network.to(device), cases, device, console)
    means = dice_means(scores)
    report = _report(config, fetched, card, manifest, cases, scores, means)
    table = _table(card, cases, scores)
    files.write(files.join(config.output, "scores.csv"), table.encode())
    files.write(files.join(config.output, "scores.json"), _as_text(report).encode())
    _log(config, fetched, card, report, table, console)
    return _outcome(config, report, card, manifest, round(time.monotonic() - start_s, 1))


# --------------------------------------------------------------------------------------------- what is scored


def _dataset_of(config: EvaluateConfig, card: ModelCard) -> str:
    name = config.dataset or card.dataset
    if name is None:
        raise ConfigError("the model does not say what dataset it is for; name one with --dataset")
    return name


def _check_suits(card: ModelCard, manifest: Manifest) -> None:
    header = manifest.header
    if len(header.channels) != card.in_channels:
        raise ConfigError(
            f"dataset {header.dataset!r} has {len(header.channels)} channels, the model takes "
            f"{card.in_channels}; evaluate it on a dataset like the one it was trained on, {card.dataset!r}"
        )
    if header.classes != card.classes:
        raise ConfigError(
            f"dataset {header.dataset!r} has the classes {header.classes}, the model {card.classes}; "
            f"evaluate it on a dataset like the one it was trained on, {card.dataset!r}"
        )


def _cases_to_score(config: EvaluateConfig, card: ModelCard, manifest: Manifest) -> Sequence[CaseRecord]:
    """The cases of the patients the model's card set aside; another dataset is split by the same config."""
    if card.split is None:
        raise CheckpointError(
            "the model's card does not say what patients were set aside; fine-tune it again"
        )
    if manifest.dataset == card.dataset:
        patients = tuple(card.split[config.part])
        known = labelled_patients(manifest)
        if gone := sorted(set(patients) - set(known)):
            raise MissingError(
                f"{len(gone)} of the {len(patients)} {config.part} patients are not in dataset "
                f"{manifest.dataset!r} with a label any more, {gone[0]!r} first; "
                "use the store the model was trained on, or fine-tune it again"
            )
    else:
        split = split_manifest(manifest, SplitConfig.model_validate(card.split["config"]))
        patients = split.test if config.part == "test" else split.validation
    cases = labelled_cases(manifest, patients)
    if not cases:
        raise ConfigError(
            f"there is no {config.part} patient in dataset {manifest.dataset!r}; "
            f"fine-tune with a larger split.{config.part}"
        )
    return cases


def _score(
    config: EvaluateConfig,
    card: ModelCard,
    network: ResidualUNet,
    cases: Sequence[CaseRecord],
    device: torch.device,
    console: Console,
) -> list[dict[int, float]]:
    scores = []
    reader = open_reader(config.store.url)
    z, y, x = card.extra["patch_size"]
    with console.track(f"scoring {cases[0].dataset}", len(cases)) as advance:
        for _, found in score_cases(network, cases, reader, card.classes, (z, y, x), config.overlap, device):
            scores.append(found)
            advance(1)
    return scores


# ----------------------------------------------------------------------------------------------- what is told


def _report(
    config: EvaluateConfig,
    fetched: FetchedModel,
    card: ModelCard,
    manifest: Manifest,
    cases: Sequence[CaseRecord],
    scores: list[dict[int, float]],
    means: DiceMeans,
) -> dict[str, Any]:
    """All scores as JSON: null where a class is in neither prediction nor label."""
    return {
        "model": fetched.uri,
        "run_id": fetched.run_id,
        "dataset": manifest.dataset,
        "manifest": manifest.sha256,
        "part": config.part,
        "grid": "stored",
        "overlap": config.overlap,
        "n_cases": len(cases),
        "n_patients": len({case.patient for case in cases}),
        "dice_mean": _or_none(means.overall),
        "dice": {card.classes[value]: _or_none(score) for value, score in means.per_class.items()},
        "cases": [
            {
                "case": case.id,
                "patient": case.patient,
                "dice": {card.classes[value]: _or_none(score) for value, score in found.items()},
            }
            for case, found in zip(cases, scores, strict=True)
        ],
    }


def _table(card: ModelCard, cases: Sequence[CaseRecord], scores: list[dict[int, float]]) -> str:
    """One row per case and class; an empty score where the class is in neither prediction nor label."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("case", "patient", "class", "name", "dice"))
    for case, found in zip(cases, scores, strict=True):
        for value, score in found.items():
            text = "" if math.isnan(score) else f"{score:.6f}"
            writer.writerow((case.id, case.patient, value, card.classes[value], text))
    return stream.getvalue()


def _log(
    config: EvaluateConfig,
    fetched: FetchedModel,
    card: ModelCard,
    report: dict[str, Any],
    table: str,
    console: Console,
) -> None:
    """To the model's run, if the model came from one; a server that does not answer costs a warning."""
    if fetched.run_id is None:
        return
    tracked = attach_run(config.tracking, fetched.run_id, warn=console.warn)
    place = f"{config.part}_{report['dataset']}"
    tracked.log_text(f"evaluation/{place}/scores.csv", table)
    tracked.log_json(f"evaluation/{place}/scores.json", report)
    metric = f"{config.part}_dice" if report["dataset"] == card.dataset else f"{place}_dice"
    named = {metric: report["dice_mean"], **{f"{metric}/{k}": v for k, v in report["dice"].items()}}
    step = int(card.extra.get("best_step", 0))
    tracked.log_metrics(step, {key: value for key, value in named.items() if value is not None})
    tracked.flush()


def _outcome(
    config: EvaluateConfig, report: dict[str, Any], card: ModelCard, manifest: Manifest, seconds: float
) -> Outcome:
    mean = report["dice_mean"]
    each = ", ".join(f"{name} {'-' if v is None else f'{v:.3f}'}" for name, v in report["dice"].items())
    trained_on = card.lineage.manifests.get(manifest.dataset)
    changed = trained_on is not None and trained_on != manifest.sha256
    return Outcome(
        summary={
            **{key: value for key, value in report.items() if key != "cases"},
            "csv": files.join(config.output, "scores.csv"),
            "json": files.join(config.output, "scores.json"),
            "seconds": seconds,
        },
        lines=(
            f"{report['model']} on {report['n_cases']} {config.part} cases of {report['dataset']}: "
            f"Dice {'-' if mean is None else f'{mean:.3f}'} ({each})",
            f"per case: {files.join(config.output, 'scores.csv')}",
        ),
        warnings=(_CHANGED.format(manifest.dataset),) if changed else (),
    )


def _or_none(score: float) -> float | None:
    return None if math.isnan(score) else score


def _as_text(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=2, sort_keys=True, allow_nan=False) + "\n"
