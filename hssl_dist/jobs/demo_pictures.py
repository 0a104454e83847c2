"""What a fine-tuned model makes of its best, its median and its worst test case, as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hssl_dist.config.evaluate import EvaluateConfig
from hssl_dist.jobs.case_pictures import chosen_cases
from hssl_dist.jobs.hardware import use_hardware
from hssl_dist.jobs.stored_model import load_stored_model
from hssl_dist.report.montage import fullest_slice, montage
from hssl_dist.segmentation.metrics import mean_dice
from hssl_dist.store import open_reader, read_manifest


def draw_cases(config: EvaluateConfig, scores: Mapping[str, Any]) -> bytes:
    """PNG of three rows - image, truth, prediction - of the model that `scores` (`scores.json`) is about."""
    device = use_hardware(config.threads)
    model = load_stored_model(config.tracking, scores["lineage"]["model"], device, config.overlap)
    reader = open_reader(config.store.url)
    records = {
        record.id: record for record in read_manifest(config.store.url, scores["lineage"]["dataset"]).cases
    }
    slices, spacing_mm = [], []
    for name, case in chosen_cases(scores["cases"], mean_score).items():
        record = records[case["case"]]
        image, label = reader.image(record), reader.label(record)
        prediction = model.predict(reader, record)
        at = fullest_slice(label, record.shape[0])
        slices += [
            (f"{name}: {record.id}", image[0, at], None),
            ("truth", image[0, at], label[at]),
            (f"prediction, Dice {mean_score(case):.2f}", image[0, at], prediction[at]),
        ]
        spacing_mm += [(record.geometry.spacing_mm[1], record.geometry.spacing_mm[2])] * 3
    return montage(slices, columns=3, spacing_mm=spacing_mm)


def mean_score(case: Mapping[str, Any]) -> float:
    """Mean Dice over the classes that have a score; 0 if none has."""
    dice = mean_dice(case["dice"].values())
    return 0.0 if math.isnan(dice) else dice
