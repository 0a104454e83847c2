"""Scores of a predicted label against the true one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8


@dataclass(frozen=True, slots=True)
class DiceMeans:
    """Means over cases: per class (NaN for a class that no case has), and the mean of those that have one."""

    per_class: dict[int, float]
    overall: float


def dice(
    prediction: UInt8[np.ndarray, "z y x"], label: UInt8[np.ndarray, "z y x"], classes: Iterable[int]
) -> dict[int, float]:
    """Dice of each class, `2 |P and T| / (|P| + |T|)`, in 0..1.

    A class in neither is NaN: there was nothing to find and nothing was found, so it counts in no mean. A
    class in only one of them is 0.
    """
    if prediction.shape != label.shape:
        raise ValueError(f"prediction has shape {prediction.shape}, label {label.shape}; they must be equal")
    scores = {}
    for value in classes:
        predicted, true = prediction == value, label == value
        total = int(predicted.sum()) + int(true.sum())
        scores[value] = 2.0 * int((predicted & true).sum()) / total if total else math.nan
    return scores


def mean_dice(scores: Iterable[float | None]) -> float:
    """Mean over those that are one, None and NaN are none; NaN without any."""
    known = [score for score in scores if score is not None and not math.isnan(score)]
    return statistics.fmean(known) if known else math.nan


def dice_means(cases: Iterable[Mapping[int, float]]) -> DiceMeans:
    """Means of per-case scores; NaN counts in none, and without any score the overall mean is NaN."""
    collected: dict[int, list[float]] = {}
    for scores in cases:
        for value, score in scores.items():
            collected.setdefault(value, []).append(score)
    per_class = {value: _mean(collected[value]) for value in sorted(collected)}
    return DiceMeans(per_class, _mean(per_class.values()))


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
