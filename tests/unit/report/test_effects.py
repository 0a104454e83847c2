"""Charts of effects: every value and interval is drawn where it belongs, in its own style."""

from __future__ import annotations

import math

import pytest

from hssl_dist.report.effects import forest, interval_chart, scatter
from hssl_dist.report.figures import INK, SERIES, inline_svg, styles

LOOK = styles(["scratch", "a", "b"], "scratch")
NAN = math.nan


def test_styles_differ_in_colour_dash_and_shape_and_the_reference_is_ink() -> None:
    assert [LOOK[name].colour for name in ("scratch", "a", "b")] == [INK, *SERIES[:2]]
    for part in ("colour", "dash", "marker"):
        assert len({repr(getattr(style, part)) for style in LOOK.values()}) == 3


def test_intervals_stand_beside_each_other_at_their_setting() -> None:
    series = {"a": {"5%": (70.0, 68.0, 73.0), "10%": (75.0, NAN, NAN)}, "scratch": {"5%": (69.0, 60.0, 71.0)}}
    figure = interval_chart(series, look=LOOK, x_label="labels", y_label="Dice")
    (axes,) = figure.axes
    scratch, a = axes.get_lines()
    assert scratch.get_ydata().tolist() == [69.0]
    assert a.get_ydata().tolist() == [70.0, 75.0]
    assert scratch.get_xdata()[0] < a.get_xdata()[0] < 0.5
    segments = [bar.get_segments() for bar in axes.collections]
    assert [[segment[:, 1].tolist() for segment in bar] for bar in segments] == [
        [[60.0, 71.0]],
        [[68.0, 73.0]],
    ]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["5%", "10%"]
    assert len(figure.legends) == 1


@pytest.mark.parametrize(
    "names", [("a", "b"), ("Scratch", "HSSL + restoration", "Own-weighted multi-domain HSSL")]
)
def test_a_legend_stays_within_its_chart(names: tuple[str, ...]) -> None:
    series = {name: {"5%": (70.0, 68.0, 73.0)} for name in names}
    figure = interval_chart(series, look=styles(names), x_label="labels", y_label="Dice")
    figure.draw_without_rendering()
    (legend,) = figure.legends
    extent = legend.get_window_extent()
    assert extent.x0 >= 0
    assert extent.x1 <= figure.bbox.width


def test_a_forest_has_a_row_per_estimate_below_its_groups_heading() -> None:
    groups = [("5%", [("a", (1.0, 0.5, 1.5)), ("b", (-1.0, NAN, NAN))]), ("10%", [("a", (0.5, -1.0, 2.0))])]
    (axes,) = forest(groups, look=LOOK, x_label="points").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["5%", "a", "b", "10%", "a"]
    assert [label.get_fontweight() for label in axes.get_yticklabels()][:2] == ["bold", "normal"]
    zero, *marks = axes.get_lines()
    assert zero.get_xdata() == [0.0, 0.0]
    assert [(mark.get_xdata()[0], mark.get_ydata()[0]) for mark in marks] == [(1.0, 1), (-1.0, 2), (0.5, 4)]
    bars = [segment.tolist() for bar in axes.collections for segment in bar.get_segments()]
    assert bars == [[[0.5, 1.0], [1.5, 1.0]], [[-1.0, 4.0], [2.0, 4.0]]]
    low, high = axes.get_ylim()
    assert low > 4 > 0 > high


def test_a_scatter_has_every_point() -> None:
    (axes,) = scatter({"a": [(1.0, 2.0), (3.0, 4.0)], "b": []}, look=styles(["a", "b"])).axes
    assert axes.get_lines()[0].get_xydata().tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    "figure",
    [
        lambda: interval_chart({}, look={}),
        lambda: forest([], look={}),
        lambda: scatter({}, look={}),
        lambda: forest([("$x_{", [("肝臓", (1.0, 0.0, 2.0))])], look=styles(["肝臓"])),
    ],
)
def test_nothing_and_any_text_can_be_drawn(figure) -> None:
    assert inline_svg(figure(), "chart").startswith("<svg")
