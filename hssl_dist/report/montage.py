"""Pictures of slices with the contours of their labels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from hssl_dist.report.figures import plain, png

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, UInt8
    from matplotlib.axes import Axes

# Bright enough to be seen on grey tissue; one per class value, in order.
CONTOURS = ("#ffb000", "#4cc3ff", "#ff5fa2", "#5fe0a5", "#c9a2ff", "#ff8a5c", "#e8e45a", "#9be15d")

Slice = tuple["Float[np.ndarray, 'y x']", "UInt8[np.ndarray, 'y x'] | None"]

_TILE_IN, _OVERLAY_IN = 1.7, 2.4


def contour_colour(value: int) -> str:
    """Colour of a class's contour (`value` >= 1); colours repeat after the last."""
    return CONTOURS[(value - 1) % len(CONTOURS)]


def fullest_slice(label: UInt8[np.ndarray, "z y x"] | None, depth: int) -> int:
    """Index of the slice with the most labelled voxels; the middle one of `depth` without any."""
    if label is None or not label.any():
        return depth // 2
    return int(np.count_nonzero(label, axis=(1, 2)).argmax())


def montage(
    slices: Sequence[tuple[str, Float[np.ndarray, "y x"], UInt8[np.ndarray, "y x"] | None]],
    columns: int = 4,
    spacing_mm: Sequence[tuple[float, float]] | None = None,
) -> bytes:
    """PNG of one tile per `(title, image, label)`, grey from the image's 1st to its 99th percentile.

    Slices of RAS volumes are shown as radiologists view them: anterior up, the patient's right on the left.
    `spacing_mm` gives each slice's pixel size y x; square pixels without it. Titles stand inside the black
    tiles, so the picture suits light and dark pages.
    """
    columns = min(columns, len(slices))
    rows = math.ceil(len(slices) / columns)
    figure = Figure(figsize=(columns * _TILE_IN, rows * _TILE_IN), facecolor="black")
    figure.subplots_adjust(0, 0, 1, 1, wspace=0.03, hspace=0.03)
    for index, (title, image, label) in enumerate(slices):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.set_axis_off()
        height_mm, width_mm = (1.0, 1.0) if spacing_mm is None else spacing_mm[index]
        _draw(axes, image, label, aspect=height_mm / width_mm)
        axes.text(
            0.03, 0.97, plain(title), transform=axes.transAxes, color="white", fontsize=7.5, va="top",
            parse_math=False, bbox={"facecolor": "black", "alpha": 0.55, "pad": 1.2, "linewidth": 0},
        )  # fmt: skip
    return png(figure, background="black")


def overlay(
    image: Float[np.ndarray, "y x"],
    label: UInt8[np.ndarray, "y x"],
    prediction: UInt8[np.ndarray, "y x"],
    spacing_mm: tuple[float, float],
) -> bytes:
    """PNG of one slice with the outlines of its label, solid, and of a prediction, dashed."""
    figure = Figure(figsize=(_OVERLAY_IN, _OVERLAY_IN), facecolor="black")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    _draw(axes, image, label, aspect=spacing_mm[0] / spacing_mm[1])
    _outline(axes, prediction, "dashed")
    return png(figure, background="black")


def _draw(
    axes: Axes, image: Float[np.ndarray, "y x"], label: UInt8[np.ndarray, "y x"] | None, aspect: float
) -> None:
    low, high = (float(value) for value in np.percentile(image, (1.0, 99.0)))
    axes.imshow(
        image, cmap="gray", origin="lower", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect,
        interpolation="bilinear",
    )  # fmt: skip
    axes.invert_xaxis()
    if label is not None:
        _outline(axes, label, "solid")


def _outline(axes: Axes, label: UInt8[np.ndarray, "y x"], style: str) -> None:
    for value in np.unique(label):
        if value:
            inside = np.asarray(label == value, dtype=np.float32)
            colour = contour_colour(int(value))
            axes.contour(inside, levels=[0.5], colors=[colour], linewidths=0.9, linestyles=style)
