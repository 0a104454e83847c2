"""Strips of dots: every case's score, beside one another per class and per set of predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hssl_dist.report.figures import INK, name_axes, plain, series_colour, small_multiples

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Dots = Sequence[tuple[float, bool]]
"""A case's score, and whether it is hollow: counted, though there was nothing to measure."""

_DRAWN = 400
_WIDTH = 0.8
"""Of the room of a class, what its strips take."""


def strip_chart(
    strips: Mapping[str, Mapping[str, Dots]],
    *,
    title: str,
    y_label: str,
    highest: float = math.inf,
) -> Figure:
    """One strip per class and, within it, per set, each with a line at its mean.

    The axis spans the scores that were measured and the means, up to `highest`; hollow dots beyond stand at
    its edge. Of many cases, evenly many along their order are drawn; the mean is of all.
    """
    figure, (axes,) = small_multiples([title], columns=1, width_in=4.2, height_in=2.8)
    low, high = _span([dots for sets in strips.values() for dots in sets.values() if dots], highest)
    for place, (_, sets) in enumerate(strips.items()):
        share = _WIDTH / max(1, len(sets))
        for index, dots in enumerate(sets.values()):
            if dots:
                middle = place - _WIDTH / 2 + share * (index + 0.5)
                _draw(axes, sorted(dots), middle, share, series_colour(index), (low, high))
    axes.set_xticks(range(len(strips)), [_short(name, len(strips)) for name in strips])
    for label in axes.get_xticklabels():
        label.set_parse_math(False)
        if len(strips) > 4:
            label.set_rotation(90)
    axes.set_xlim(-0.6, len(strips) - 0.4)
    margin = 0.03 * (high - low)
    axes.set_ylim(low - margin, high + margin)
    name_axes(axes, "", y_label)
    return figure


def _span(strips: Sequence[Dots], highest: float) -> tuple[float, float]:
    """What holds all measured scores and every strip's mean, and a little room."""
    scores = [score for dots in strips for score, hollow in dots if not hollow]
    scores += [_mean(dots) for dots in strips] or [0.0, 1.0]
    low, high = min(scores), max(scores)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    return max(0.0, low - room) if low >= 0.0 else low - room, min(highest, high + room)


def _mean(dots: Dots) -> float:
    return float(np.mean([score for score, _ in dots]))


def _draw(
    axes: Axes, dots: Dots, middle: float, width: float, colour: str, span: tuple[float, float]
) -> None:
    chosen = np.unique(np.linspace(0, len(dots) - 1, min(len(dots), _DRAWN)).astype(int))
    # Neighbours in score stand side by side: the golden ratio never puts two close to one another.
    places = middle + width * 0.8 * ((np.arange(len(chosen)) * 0.618034) % 1.0 - 0.5)
    scores = np.clip([dots[index][0] for index in chosen], *span)
    hollow = np.array([dots[index][1] for index in chosen])
    for chosen_dots, face, edge in ((~hollow, colour, 0.0), (hollow, "none", 1.0)):
        axes.plot(
            places[chosen_dots], scores[chosen_dots], linestyle="", marker="o", markersize=3.6, color=colour,
            alpha=0.7, markerfacecolor=face, markeredgewidth=edge, clip_on=False,
        )  # fmt: skip
    axes.hlines(_mean(dots), middle - width / 2, middle + width / 2, color=INK, linewidth=1.6, zorder=4)


def _short(name: str, count: int) -> str:
    longest = 14 if count > 2 else 24
    return plain(name, longest)
