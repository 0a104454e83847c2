"""Which cases a report shows, and a slice of one with the outlines of label and prediction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from hssl_dist.records import Triple
from hssl_dist.report.montage import fullest_slice, overlay

Case = TypeVar("Case")

_MARGIN_MM = 12.0
"""What a picture shows around the structures."""


def chosen_cases(cases: Iterable[Case], score: Callable[[Case], float]) -> dict[str, Case]:
    """The best, median (the lower one of two) and worst case that has a score (no NaN); each case once."""
    ranked = sorted((case for case in cases if not math.isnan(score(case))), key=score, reverse=True)
    if not ranked:
        return {}
    places = {"best": 0, "worst": len(ranked) - 1, "median": len(ranked) // 2}
    first = {place: rank for rank, place in reversed(places.items())}
    return {rank: ranked[place] for place, rank in sorted(first.items())}


def shot(
    image: Float32[np.ndarray, "z y x"],
    label: UInt8[np.ndarray, "z y x"],
    prediction: UInt8[np.ndarray, "z y x"],
    spacing_mm: Triple,
) -> bytes:
    """PNG of the slice with the largest annotated area (of the prediction if there is no label), cut to the
    surroundings of both.
    """
    at = fullest_slice(label if label.any() else prediction, len(image))
    y, x = _window((label[at] > 0) | (prediction[at] > 0), spacing_mm[1:])
    return overlay(image[at, y, x], label[at, y, x], prediction[at, y, x], spacing_mm[1:])


def _window(shown: Bool[np.ndarray, "y x"], spacing_mm: Sequence[float]) -> tuple[slice, slice]:
    """A square in millimetres around what is shown, as far as the slice reaches; all of an empty one."""
    if not shown.any():
        return slice(None), slice(None)
    ends = [np.flatnonzero(shown.any(axis=1 - axis))[[0, -1]] for axis in (0, 1)]
    side_mm = (
        max((last - first + 1) * edge for (first, last), edge in zip(ends, spacing_mm, strict=True))
        + 2 * _MARGIN_MM
    )
    y, x = (
        slice(
            max(0, math.floor((first + last + 1) / 2 - side_mm / edge / 2)),
            math.ceil((first + last + 1) / 2 + side_mm / edge / 2),
        )
        for (first, last), edge in zip(ends, spacing_mm, strict=True)
    )
    return y, x
