"""Charts of how geometry and intensities are distributed over a dataset's cases, before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from hssl_dist.report.figures import INK, add_legend, name_axes, series_colour, small_multiples

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hssl_dist.records import Geometry, Intensity

_BINS = 14
_DRAWN_CASES = 160
_BEFORE, _AFTER = series_colour(1), series_colour(0)


def geometry_chart(geometries: Sequence[Geometry]) -> Figure:
    """Histograms over cases of size (voxels) and spacing (mm) along z, y and x: source and store."""
    titles = [f"{quantity} {axis}" for quantity in ("size", "spacing") for axis in "zyx"]
    figure, panels = small_multiples(titles, columns=3, width_in=7.4, height_in=3.7)
    sizes = np.array([(g.oriented_shape, g.shape) for g in geometries], dtype=float)
    spacings = np.array([(g.oriented_spacing_mm, g.spacing_mm) for g in geometries])
    for row, (values, unit) in enumerate(((sizes, "voxels"), (spacings, "mm"))):
        for axis in range(3):
            _overlaid(panels[3 * row + axis], values[:, 0, axis], values[:, 1, axis])
            name_axes(panels[3 * row + axis], unit, "cases" if axis == 0 else "")
    add_legend(figure, panels[0], columns=2)
    return figure


def _overlaid(axes: Axes, before: np.ndarray, after: np.ndarray) -> None:
    low, high = min(before.min(), after.min()), max(before.max(), after.max())
    margin = 0.5 if high - low < 1e-6 * max(1.0, abs(high)) else 0.0
    edges = np.linspace(low - margin, high + margin, _BINS + 1)
    axes.hist(before, bins=edges.tolist(), color=_BEFORE, alpha=0.75, label="source")
    axes.hist(after, bins=edges.tolist(), histtype="step", color=_AFTER, linewidth=1.8, label="stored")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))


def intensity_chart(name: str, intensities: Sequence[Intensity]) -> Figure:
    """One line per case from its 0.5 to its 99.5 percentile with a dot at the mean: source and stored.

    Cases are in order of their mean; of many cases, evenly many along that order are drawn.
    """
    figure, panels = small_multiples(
        [f"{name}, source", f"{name}, stored"], columns=2, width_in=7.4, height_in=2.6
    )
    ordered = sorted(intensities, key=lambda item: item.mean)
    if len(ordered) > _DRAWN_CASES:
        ordered = [ordered[i] for i in np.linspace(0, len(ordered) - 1, _DRAWN_CASES).astype(int)]
    source = np.array([(i.percentile_00_5, i.mean, i.percentile_99_5) for i in ordered])
    stored = np.array([_normalised(i) for i in ordered])
    width = float(np.clip(90 / max(1, len(ordered)), 0.8, 4.0))
    for axes, values, colour in ((panels[0], source, _BEFORE), (panels[1], stored, _AFTER)):
        places = np.arange(len(values))
        axes.vlines(places, values[:, 0], values[:, 2], color=colour, linewidth=width, alpha=0.75)
        axes.plot(places, values[:, 1], linestyle="", marker="o", markersize=width / 1.3 + 0.8, color=INK)
        axes.set_xticks([])
        name_axes(axes, "cases, by mean of the source", "")
    return figure


def _normalised(intensity: Intensity) -> tuple[float, float, float]:
    def stored(value: float) -> float:
        if intensity.clip_low is not None:
            value = max(value, intensity.clip_low)
        if intensity.clip_high is not None:
            value = min(value, intensity.clip_high)
        return (value - intensity.offset) / intensity.scale

    return stored(intensity.percentile_00_5), stored(intensity.mean), stored(intensity.percentile_99_5)
