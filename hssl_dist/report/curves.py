"""Line charts of values over training steps.

png(line_chart({"image": [(10, 3.1), (20, 2.8)]}, y_label="loss"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator

from hssl_dist.report.figures import Style, add_legend, name_axes, plain, small_multiples, styles

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

_FEW_POINTS = 12


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str = "",
    x_label: str = "step",
    y_label: str = "",
    y_range: tuple[float, float] | None = None,
    look: Mapping[str, Style] | None = None,
) -> Figure:
    """One line per label through its `(step, value)` points; write it with `figures.png` or `inline_svg`.

    Lines differ in colour and dash, those of `look` if given. A line of few points shows them, and one that
    holds NaN has a gap there.
    """
    figure, (axes,) = small_multiples([title], columns=1, width_in=4.0, height_in=2.7)
    for label, style in (styles(series) if look is None else look).items():
        if label in series:
            points = series[label]
            axes.plot(
                [step for step, _ in points],
                [value for _, value in points],
                label=plain(label),
                color=style.colour,
                linestyle=style.dash,
                linewidth=1.8,
                marker=style.marker if len(points) <= _FEW_POINTS else "",
                markersize=3.5,
            )
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if y_range is not None:
        axes.set_ylim(*y_range)
    name_axes(axes, x_label, y_label)
    add_legend(figure, axes, columns=3)
    return figure
