"""Charts of how geometry and intensities are distributed over a dataset's cases, before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from hssl_dist.report.figures import INK, name_axes, series_colour, small_multiples

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hssl_dist.records import Geometry, Intensity

_BINS = 14
_DRAWN_CASES = 160
SOURCE, STORED = series_colour(1), series_colour(0)
"""Colours of what a file held and of what the store holds."""


def geometry_charts(geometries: Sequence[Geometry]) -> dict[str, Figure]:
    """Histograms over cases of size (voxels) and spacing (mm) along z, y and x: source and stored."""
    sizes = np.array([(g.oriented_shape, g.shape) for g in geometries], dtype=float)
    spacings = np.array([(g.oriented_spacing_mm, g.spacing_mm) for g in geometries])
    charts = {}
    for quantity, unit, values in (("size", "voxels", sizes), ("spacing", "mm", spacings)):
        for index, axis in enumerate("zyx"):
            title = f"{quantity} {axis}, {unit}"
            charts[title], (axes,) = small_multiples([title], columns=1, width_in=2.2, height_in=1.6)
            _overlaid(axes, values[:, 0, index], values[:, 1, index])
    return charts


def _overlaid(axes: Axes, before: np.ndarray, after: np.ndarray) -> None:
    low, high = min(before.min(), after.min()), max(before.max(), after.max())
    margin = 0.5 if high - low < 1e-6 * max(1.0, abs(high)) else 0.0
    edges = np.linspace(low - margin, high + margin, _BINS + 1)
    axes.hist(before, bins=edges.tolist(), color=SOURCE, alpha=0.75)
    axes.hist(after, bins=edges.tolist(), histtype="step", color=STORED, linewidth=1.8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))


def intensity_charts(name: str, intensities: Sequence[Intensity]) -> dict[str, Figure]:
    """One line per case from its 0.5 to its 99.5 percentile with a dot at the mean: source and stored.

    Cases are in order of their mean; of many cases, evenly many along that order are drawn.
    """
    ordered = sorted(intensities, key=lambda item: item.mean)
    if len(ordered) > _DRAWN_CASES:
        ordered = [ordered[i] for i in np.linspace(0, len(ordered) - 1, _DRAWN_CASES).astype(int)]
    source = np.array([(i.percentile_00_5, i.mean, i.percentile_99_5) for i in ordered])
    stored = np.array([_normalised(i) for i in ordered])
    width = float(np.clip(90 / max(1, len(ordered)), 0.8, 4.0))
    charts = {}
    for title, values, colour in ((f"{name}, source", source, SOURCE), (f"{name}, stored", stored, STORED)):
        charts[title], (axes,) = small_multiples([title], columns=1, width_in=3.9, height_in=2.3)
        places = np.arange(len(values))
        axes.vlines(places, values[:, 0], values[:, 2], color=colour, linewidth=width, alpha=0.75)
        axes.plot(places, values[:, 1], linestyle="", marker="o", markersize=width / 1.3 + 0.8, color=INK)
        axes.set_xticks([])
        name_axes(axes, "cases, by mean of the source", "")
    return charts


def _normalised(intensity: Intensity) -> tuple[float, float, float]:
    def stored(value: float) -> float:
        if intensity.clip_low is not None:
            value = max(value, intensity.clip_low)
        if intensity.clip_high is not None:
            value = min(value, intensity.clip_high)
        return (value - intensity.offset) / intensity.scale

    return stored(intensity.percentile_00_5), stored(intensity.mean), stored(intensity.percentile_99_5)
