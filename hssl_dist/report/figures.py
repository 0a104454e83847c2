"""How every figure looks and how it is written: as inline SVG that follows the page's colours, or as PNG.

Figures are matplotlib `Figure` objects, never pyplot: nothing is shared between two of them.
"""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import matplotlib as mpl
from markupsafe import Markup
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from hssl_dist.report.page import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matplotlib.axes import Axes

# Okabe and Ito's colours: told apart by colour-blind readers. Templates define their dark counterparts.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#b0578d", "#8a6d00", "#3a8fb7")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 2, 1.5, 2)), (0, (8, 3)), (0, (3, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P")
INK = "#3b4046"
GRID = "#d5d9dd"

_PAGE_COLOURS = {INK: "var(--ink-soft)", GRID: "var(--rule)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)
}
FONT_SIZE_PT = 9.5
_LEGEND_WIDTH = 42
"""Characters of labels that fit beside each other in a legend."""
_ID = re.compile(r'(\bid="|url\(#|href="#)([^")]+)')
_METADATA_AND_STYLE = re.compile(r"\s*<metadata>.*?</metadata>|\s*<style[^>]*>.*?</style>", re.DOTALL)
_SIZE = re.compile(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Style:
    """How a series is told from others, by colour and without it."""

    colour: str
    dash: str | tuple[float, tuple[float, ...]]
    marker: str


def styles(names: Iterable[str], reference: str | None = None) -> dict[str, Style]:
    """A style for each name, the same in every chart of a page; the reference is in the ink's colour."""
    others = [name for name in names if name != reference]
    found = {
        name: Style(series_colour(place), DASHES[place % len(DASHES)], MARKERS[place % len(MARKERS)])
        for place, name in enumerate(others)
    }
    return found if reference is None else {reference: Style(INK, (0, (2.5, 1.5)), "X"), **found}


def series_colour(index: int) -> str:
    """Colour of the series with this index; they repeat after the last."""
    return SERIES[index % len(SERIES)]


def page_colour(colour: str) -> str:
    """What a page calls one of the figures' colours, so that it follows the theme."""
    return _PAGE_COLOURS[colour]


def small_multiples(
    titles: Sequence[str], columns: int, width_in: float, height_in: float
) -> tuple[Figure, list[Axes]]:
    """A figure of one styled panel per title, row by row; `width_in x height_in` is the whole figure."""
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    panels = [figure.add_subplot(rows, columns, number) for number in range(1, len(titles) + 1)]
    for title, axes in zip(titles, panels, strict=True):
        _style(axes, title)
    return figure, panels


def _style(axes: Axes, title: str) -> None:
    axes.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(colors=INK, labelsize=FONT_SIZE_PT - 1, length=0)
    axes.grid(visible=True, axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.locator_params(axis="y", nbins=5)
    if title:
        axes.set_title(plain(title), loc="left", color=INK, fontsize=FONT_SIZE_PT, parse_math=False)


def name_axes(axes: Axes, x_label: str, y_label: str) -> None:
    """Label both axes, taken literally (no mathtext)."""
    for setter, label in ((axes.set_xlabel, x_label), (axes.set_ylabel, y_label)):
        setter(plain(label), color=INK, fontsize=FONT_SIZE_PT, parse_math=False)


def add_legend(figure: Figure, axes: Axes, columns: int) -> None:
    """The legend of `axes` below the panels, if it has more than one entry, in so many columns or as many as
    a figure 4 in wide has room for.
    """
    handles, labels = axes.get_legend_handles_labels()
    if len(handles) < 2:
        return
    columns = min(columns, max(1, _LEGEND_WIDTH // max(map(len, labels))))
    legend = figure.legend(
        handles, labels, loc="outside lower left", ncols=columns, frameon=False,
        fontsize=FONT_SIZE_PT - 1, labelcolor=INK, handlelength=2.2, columnspacing=1.4,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def png(figure: Figure, dpi: int = 144, background: str = "white") -> bytes:
    """The figure on a background, as PNG; equal figures give equal bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, facecolor=background, metadata={"Software": None})
    return stream.getvalue()


def inline_svg(figure: Figure, alt: str) -> Markup:
    """The figure as an `<svg>` element for a page: transparent, in the page's colours, text as text.

    `alt` is what a screen reader says. Equal figures give equal text.
    """
    stream = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "hssl", "font.family": ["DejaVu Sans"]}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = _METADATA_AND_STYLE.sub("", text)
    for colour, variable in _PAGE_COLOURS.items():
        text = text.replace(colour, variable)
    text = text.replace("'DejaVu Sans'", "var(--font)")
    unique = f"f{hashlib.sha256(text.encode()).hexdigest()[:8]}-"
    text = _ID.sub(rf"\g<1>{unique}\g<2>", text)
    opening = Markup('<svg viewBox="{}" role="img" aria-label="{}">').format(_view_box(text), visible(alt))
    return opening + Markup(_SIZE.sub("", text, count=1).strip())  # matplotlib escaped the rest


def _view_box(svg: str) -> str:
    match = _SIZE.search(svg)
    if match is None:
        raise ValueError("matplotlib wrote an SVG without a viewBox")
    return match[1]


def plain(text: str, longest: int = 60) -> str:
    """`text` as it can be drawn, whatever it is: what the figures' font lacks or nobody sees is replaced, and
    what would leave no room for the figure is cut off.
    """
    known = _characters()
    seen = "".join(character if ord(character) in known else "□" for character in visible(text))
    return seen if len(seen) <= longest else f"{seen[: longest - 1]}…"


@cache
def _characters() -> frozenset[int]:
    font = FT2Font(font_manager.findfont("DejaVu Sans"))
    return frozenset(font.get_charmap())
