"""Charts: their values reach the figure, pages get their own colours, and any text can be drawn."""

from __future__ import annotations

import math
import re

import matplotlib as mpl
import pytest

from hssl_dist.report.curves import line_chart
from hssl_dist.report.figures import SERIES, inline_svg, plain, png

POINTS = {"image": [(0, 3.0), (10, 2.0), (20, 1.5)], "task": [(0, 1.0), (10, 0.5), (20, 0.2)]}


def test_a_line_goes_through_its_points_in_its_own_colour_and_dash() -> None:
    (axes,) = line_chart(POINTS, title="Loss", y_label="loss").axes
    first, second = axes.get_lines()
    assert first.get_xydata().tolist() == [[0.0, 3.0], [10.0, 2.0], [20.0, 1.5]]
    assert (first.get_label(), second.get_label()) == ("image", "task")
    assert (first.get_color(), second.get_color()) == SERIES[:2]
    assert first.get_linestyle() != second.get_linestyle()
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title(loc="left")) == ("step", "loss", "Loss")


def test_only_several_lines_need_a_legend() -> None:
    assert len(line_chart(POINTS).legends) == 1
    assert line_chart({"loss": POINTS["image"]}).legends == []


def test_nan_leaves_a_gap_and_empty_series_are_drawn() -> None:
    chart = line_chart({"dice": [(1, 0.5), (2, math.nan), (3, 0.7)], "none": []}, y_range=(0, 1))
    assert chart.axes[0].get_ylim() == (0, 1)
    assert inline_svg(chart, "Dice").startswith("<svg viewBox=")
    assert png(line_chart({})).startswith(b"\x89PNG")


def test_png_and_svg_are_equal_for_equal_figures() -> None:
    assert png(line_chart(POINTS)) == png(line_chart(POINTS))
    assert inline_svg(line_chart(POINTS), "Loss") == inline_svg(line_chart(POINTS), "Loss")


def test_an_inline_svg_follows_the_page() -> None:
    svg = inline_svg(line_chart(POINTS, y_label="loss"), 'a "loss" <chart>')
    assert "var(--series-1)" in svg
    assert "var(--ink-soft)" in svg
    assert not re.search(r":\s*#[0-9a-f]{6}", svg)
    assert 'role="img" aria-label="a &#34;loss&#34; &lt;chart&gt;"' in svg
    assert "<metadata" not in svg
    assert "<style" not in svg
    assert "<?xml" not in svg
    assert ">loss<" in svg
    assert re.fullmatch(r"<svg viewBox=\"0 0 [\d.]+ [\d.]+\" .*</svg>", svg, re.DOTALL)


def test_ids_of_two_charts_on_a_page_differ() -> None:
    charts = [inline_svg(line_chart({"a": [(0, 1), (1, last)]}), "chart") for last in (2, 3)]
    first, second = (set(re.findall(r'\bid="([^"]+)"', chart)) for chart in charts)
    assert first
    assert not first & second
    for chart, known in zip(charts, (first, second), strict=True):
        used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', chart))
        assert used <= known


def test_text_is_taken_literally_and_strange_characters_are_replaced() -> None:
    assert plain("Größe µm → 肝臓") == "Größe µm → □□"
    svg = inline_svg(line_chart({"$x^": [(0, 1)], "<b>": [(0, 2)]}, title="$\\frac{"), "chart")
    assert "$x^" in svg
    assert "&lt;b&gt;" in svg
    assert "$\\frac{" in svg


@pytest.mark.parametrize("write", [png, lambda figure: inline_svg(figure, "chart")])
def test_settings_of_matplotlib_stay_as_they_were(write) -> None:
    before = dict(mpl.rcParams)
    write(line_chart(POINTS))
    assert dict(mpl.rcParams) == before
