"""Charts of estimates with their intervals: over a few settings, and as differences row by row.

interval_chart({"scratch": {"5%": (70.1, 68.0, 72.2)}}, look=styles(["scratch"]), y_label="Dice")
forest([("5% of the labels", [("HSSL", (1.4, 0.6, 2.2))])], look=styles(["HSSL"]), x_label="Dice points")
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hssl_dist.report.figures import FONT_SIZE_PT, GRID, INK, add_legend, name_axes, plain, small_multiples

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hssl_dist.report.figures import Style

Interval = tuple[float, float, float]
"""Value, low and high; NaN where there is none."""

_SPREAD = 0.36
"""Width over which the series of one setting stand beside each other, of the room between settings."""
_ROW_IN, _FRAME_IN = 0.21, 0.75


def interval_chart(
    series: Mapping[str, Mapping[str, Interval]],
    *,
    look: Mapping[str, Style],
    title: str = "",
    x_label: str = "",
    y_label: str = "",
) -> Figure:
    """A line per series through its values at the settings, which are evenly apart, with their intervals.

    Settings stand in the order of their first appearance.
    """
    figure, (axes,) = small_multiples([title], columns=1, width_in=4.0, height_in=3.2)
    settings = list(dict.fromkeys(name for values in series.values() for name in values))
    shown = [name for name in look if series.get(name)]
    for index, name in enumerate(shown):
        shift = _SPREAD * ((index + 0.5) / len(shown) - 0.5)
        values = series[name]
        places = [settings.index(setting) + shift for setting in values]
        _draw_intervals(axes, places, list(values.values()), name, look[name])
    axes.set_xticks(range(len(settings)), [plain(setting) for setting in settings])
    axes.set_xlim(-0.5, max(1, len(settings)) - 0.5)
    name_axes(axes, x_label, y_label)
    add_legend(figure, axes, columns=2)
    return figure


def _draw_intervals(
    axes: Axes, places: Sequence[float], values: Sequence[Interval], name: str, style: Style
) -> None:
    axes.plot(
        places, [value for value, _, _ in values], label=plain(name), color=style.colour,
        linestyle=style.dash, linewidth=1.4, marker=style.marker, markersize=4.5,
    )  # fmt: skip
    known = [(place, low, high) for place, (_, low, high) in zip(places, values, strict=True) if low == low]
    if known:
        axes.vlines(*zip(*known, strict=True), color=style.colour, linewidth=1.4)


def forest(
    groups: Sequence[tuple[str, Sequence[tuple[str, Interval]]]],
    *,
    look: Mapping[str, Style],
    title: str = "",
    x_label: str = "",
) -> Figure:
    """Estimates below each other with their intervals, group by group, and a line at 0."""
    rows = sum(1 + len(members) for _, members in groups)
    figure, (axes,) = small_multiples(
        [title], columns=1, width_in=4.0, height_in=_FRAME_IN + _ROW_IN * max(1, rows)
    )
    axes.grid(visible=False)
    axes.grid(visible=True, axis="x", color=GRID, linewidth=0.8)
    axes.axvline(0.0, color=INK, linewidth=1.2)
    row, ticks = 0, []
    for heading, members in groups:
        ticks.append((row, heading, "bold"))
        for name, (value, low, high) in members:
            row += 1
            ticks.append((row, name, "normal"))
            style = look[name]
            if not math.isnan(low):
                axes.hlines(row, low, high, color=style.colour, linewidth=1.8)
            axes.plot(value, row, color=style.colour, marker=style.marker, markersize=5.0, linestyle="")
        row += 1
    axes.set_yticks([place for place, _, _ in ticks], [plain(name, 40) for _, name, _ in ticks])
    for (_, _, weight), label in zip(ticks, axes.get_yticklabels(), strict=True):
        label.set_parse_math(False)
        label.set_fontweight(weight)
    axes.set_ylim(row - 0.4, -0.6)
    name_axes(axes, x_label, "")
    return figure


def scatter(
    points: Mapping[str, Sequence[tuple[float, float]]],
    *,
    look: Mapping[str, Style],
    title: str = "",
    x_label: str = "",
    y_label: str = "",
) -> Figure:
    """A point per pair of numbers, by label in colour and shape."""
    figure, (axes,) = small_multiples([title], columns=1, width_in=4.0, height_in=3.6)
    axes.grid(visible=True, color=GRID, linewidth=0.8)
    for name, style in look.items():
        pairs = points.get(name, ())
        axes.plot(
            [x for x, _ in pairs], [y for _, y in pairs], label=plain(name), color=style.colour,
            linestyle="", marker=style.marker, markersize=4.0, alpha=0.75, markeredgewidth=0.0,
        )  # fmt: skip
    axes.tick_params(labelsize=FONT_SIZE_PT - 2)
    name_axes(axes, x_label, y_label)
    add_legend(figure, axes, columns=2)
    return figure
