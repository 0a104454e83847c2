"""python -m benchmarks.restoring --config benchmarks/restoring.yaml --models MODEL MODEL ...

Ways from a network's logits, on the grid it sees, to labels on the source files' grid: Dice there, against
the labels as they were drawn. One forward pass per case serves all ways, and they are compared by patient.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from hssl_dist.config.loading import load_config
from hssl_dist.config.parts import TrackingConfig
from hssl_dist.config.preprocess import PreprocessConfig
from hssl_dist.datasets import discover
from hssl_dist.imaging import load_case, prepare, restore_scores
from hssl_dist.imaging.orientation import from_ras
from hssl_dist.jobs.segmenter import Segmenter, load_segmenter
from hssl_dist.networks.weights import load_model
from hssl_dist.records import Case, Geometry
from hssl_dist.segmentation import Windows, dice, logit_slabs
from hssl_dist.tracking import fetch_model
from tests.restoring import restore

Logits = np.ndarray[Any, np.dtype[np.float32]]
Label = np.ndarray[Any, np.dtype[np.uint8]]
BASELINE = "labels, share of each class"
_DRAWS = 10_000


def _nearest(logits: Logits, geometry: Geometry) -> Label:
    """The label of the nearest voxel of the stored grid."""
    label = logits.argmax(axis=0).astype(np.uint8)
    box = tuple(slice(a, b) for a, b in zip(geometry.crop_start, geometry.crop_stop, strict=True))
    oriented = np.zeros(geometry.oriented_shape, dtype=np.uint8)
    grid = [
        np.rint((np.arange(new) + 0.5 - new / 2) * to_mm / from_mm + old / 2 - 0.5).clip(0, old - 1)
        for new, to_mm, from_mm, old in zip(
            oriented[box].shape, geometry.oriented_spacing_mm, geometry.spacing_mm, label.shape, strict=True
        )
    ]
    oriented[box] = label[np.ix_(*(line.astype(int) for line in grid))]
    return np.ascontiguousarray(from_ras(oriented, np.asarray(geometry.original_affine)))


def _softmax(logits: Logits) -> Logits:
    powers = np.exp(logits - logits.max(axis=0))
    result: Logits = powers / powers.sum(axis=0)
    return result


WAYS: dict[str, Callable[[Logits, Geometry], Label]] = {
    "labels, nearest voxel": _nearest,
    BASELINE: lambda logits, geometry: restore(logits.argmax(axis=0).astype(np.uint8), geometry),
    "logits, linear": lambda logits, geometry: restore_scores([logits], geometry),
    "logits, linear, widened": lambda logits, geometry: restore_scores([logits], geometry, ("linear",) * 3),
    "logits, cubic in the plane": lambda logits, geometry: restore_scores(
        [logits], geometry, ("share", "cubic", "cubic")
    ),
    "probabilities, linear": lambda logits, geometry: restore_scores([_softmax(logits)], geometry),
}


def main() -> None:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", required=True, nargs="+", help="folders, or what else `evaluate` takes")
    parser.add_argument("--config", required=True, help="what their datasets were preprocessed by")
    parser.add_argument("--parts", nargs="+", default=["test"], help="patients the models' cards set aside")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/restoring.json"))
    words = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(PreprocessConfig, "benchmarks.restoring", ["--config", words.config])
    reports = [_measure(model, config, words.parts) for model in words.models]
    words.output.parent.mkdir(parents=True, exist_ok=True)
    words.output.write_text(json.dumps(reports, indent=2, sort_keys=True) + "\n")
    print("\n\n".join(map(_table, reports)))  # noqa: T201


def _measure(model: str, config: PreprocessConfig, parts: Sequence[str]) -> dict[str, Any]:
    """One model on the labelled cases of the patients that its card set aside."""
    tracking = TrackingConfig()
    segmenter = load_segmenter(tracking, model, torch.device("cpu"))
    card, _ = load_model(fetch_model(tracking, model).folder)
    assert card.split is not None
    patients = {patient for part in parts for patient in card.split[part]}
    (dataset,) = [dataset for dataset in config.datasets if dataset.name == card.dataset]
    found = discover(dataset, config.source_root).cases
    cases = [case for case in found if case.patient in patients and case.label is not None]
    scores: dict[str, list[dict[int, float]]] = {way: [] for way in WAYS}
    seconds = dict.fromkeys(WAYS, 0.0)
    for case in cases:
        for way, (dices, spent_s) in _compare(segmenter, case).items():
            scores[way].append(dices)
            seconds[way] += spent_s
    return {"dataset": dataset.name, **_report(segmenter, cases, scores, seconds)}


def _compare(segmenter: Segmenter, case: Case) -> dict[str, tuple[dict[int, float], float]]:
    """Dice of each class, and the seconds taken from the logits to the label, by way."""
    image = Case(case.dataset, case.id, case.patient, case.images, None, case.modalities)
    volume, intensities = prepare(load_case(image, {}, 1 << 30), segmenter.recipe, segmenter.rounding)
    background = [intensity.background for intensity in intensities]
    windows = Windows(segmenter.patch_size)
    slabs: Iterable[Logits] = logit_slabs(
        segmenter.network, volume.image, windows, segmenter.device, background, volume.scaling
    )
    logits = np.concatenate(list(slabs), axis=1)
    truth = np.asarray(nibabel.load(case.label).dataobj).astype(np.uint8)
    results = {}
    for way, restored in WAYS.items():
        start_s = time.process_time()
        label = restored(logits, volume.geometry)
        spent_s = time.process_time() - start_s
        results[way] = dice(label, truth, segmenter.classes), spent_s
    return results


def _report(
    segmenter: Segmenter,
    cases: Sequence[Case],
    scores: dict[str, list[dict[int, float]]],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Means over cases in points, and each way's paired difference to `BASELINE` with its 95 % interval."""
    means = {way: np.array([_mean(found) for found in each]) for way, each in scores.items()}
    patients = sorted({case.patient for case in cases})
    places = [[i for i, case in enumerate(cases) if case.patient == patient] for patient in patients]
    ways = {}
    for way, found in means.items():
        apart = found - means[BASELINE]
        low, high = _interval([float(np.nanmean(apart[place])) for place in places])
        ways[way] = {
            "dice": 100 * float(np.nanmean(found)),
            "classes": {
                name: 100 * float(np.nanmean([case[value] for case in scores[way]]))
                for value, name in segmenter.classes.items()
            },
            "difference": 100 * float(np.nanmean([np.nanmean(apart[place]) for place in places])),
            "interval": [100 * low, 100 * high],
            "seconds_per_case": seconds[way] / len(cases),
        }
    return {"cases": len(cases), "patients": len(patients), "ways": ways}


def _mean(found: dict[int, float]) -> float:
    known = [score for score in found.values() if not math.isnan(score)]
    return sum(known) / len(known) if known else math.nan


def _interval(values: list[float]) -> tuple[float, float]:
    """Percentile bootstrap over patients."""
    rng = np.random.default_rng(0)
    draws = rng.choice(np.asarray(values), (_DRAWS, len(values))).mean(axis=1)
    low, high = np.percentile(draws, (2.5, 97.5))
    return float(low), float(high)


def _table(report: dict[str, Any]) -> str:
    lines = [
        f"{report['dataset']}: {report['cases']} cases of {report['patients']} patients",
        "| way | Dice | difference | CPU s |",
        "|---|---|---|---|",
    ]
    for way, row in report["ways"].items():
        low, high = row["interval"]
        lines.append(
            f"| {way} | {row['dice']:.2f} | {row['difference']:+.2f} [{low:+.2f}, {high:+.2f}] | "
            f"{row['seconds_per_case']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
