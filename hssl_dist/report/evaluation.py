"""The report of an evaluation: scores with intervals, every case as a dot, comparisons, pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from hssl_dist.report.figures import inline_svg
from hssl_dist.report.montage import contour_colour
from hssl_dist.report.page import png_source, render, with_sign
from hssl_dist.report.strips import Dots, strip_chart

_NONE = "–"  # noqa: RUF001


@dataclass(frozen=True, slots=True)
class Column:
    """A metric of the page: its heading, the decimals of its numbers, whether they have signs or are shares
    to be written in per cent.
    """

    title: str
    decimals: int
    signed: bool = False
    percent: bool = False


@dataclass(frozen=True, slots=True)
class Value:
    """A number with its interval; NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A class (or, without a label value, their mean): for each column, mean and median."""

    name: str
    label: int | None
    means: Sequence[Value]
    medians: Sequence[Value]


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """In how many cases a class is in both, the label alone, the prediction alone, and neither."""

    name: str
    label: int
    found: int
    missed: int
    spurious: int
    absent: int


@dataclass(frozen=True, slots=True)
class SetTable:
    """One set of predictions: a row per class, the last for their mean."""

    name: str
    rows: Sequence[ScoreRow]
    outcomes: Sequence[OutcomeRow]


@dataclass(frozen=True, slots=True)
class DifferenceCell:
    """A paired difference: value with interval, patients better, equal and worse, Wilcoxon's p."""

    difference: Value
    better: int
    equal: int
    worse: int
    p: float


@dataclass(frozen=True, slots=True)
class ComparisonTable:
    """A set against the first; a row per class and one for their mean, a cell for each column.

    `unpaired` says of how many cases and classes only one of both has a score.
    """

    first: str
    other: str
    rows: Sequence[tuple[str, int | None, Sequence[DifferenceCell]]]
    unpaired: int


@dataclass(frozen=True, slots=True)
class WorstRow:
    """A case of low Dice: where it is worst, and what is missing or too much."""

    name: str
    case: str
    patient: str
    dice: float
    remark: str


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG of a slice with the outlines of label and prediction."""

    png: bytes
    caption: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A metric over the cases: dots by class and set."""

    title: str
    y_label: str
    strips: Mapping[str, Mapping[str, Dots]]
    highest: float = math.inf


@dataclass(frozen=True, slots=True)
class EvaluationData:
    """All the report shows."""

    title: str
    facts: Sequence[tuple[str, str]]
    warnings: Sequence[str]
    classes: Mapping[int, str]
    columns: Sequence[Column]
    tables: Sequence[SetTable]
    charts: Sequence[Chart]
    comparisons: Sequence[ComparisonTable]
    worst: Sequence[WorstRow]
    pictures: Mapping[str, Sequence[Picture]]
    confidence: float
    notes: Sequence[tuple[str, str]]
    lineage: Sequence[tuple[str, str]] = field(default=())


def evaluation_report(data: EvaluationData) -> str:
    """The report as one self-contained HTML page; texts from the data are escaped."""
    return render(
        "evaluation.html.j2",
        title=data.title,
        data=data,
        colour=contour_colour,
        several=len(data.tables) > 1,
        set_colours={table.name: f"var(--series-{place % 6 + 1})" for place, table in enumerate(data.tables)},
        percent=f"{data.confidence:.0%}",
        charts=[_chart(chart) for chart in data.charts],
        pictures={
            name: [(png_source(picture.png), picture.caption) for picture in pictures]
            for name, pictures in data.pictures.items()
        },
        hollow=any(dots for chart in data.charts for dots in _hollow(chart)),
        patients=any(row.patient != row.case for row in data.worst),
        shown=_shown,
        interval=_interval,
        shown_p=_p,
    )


def _chart(chart: Chart) -> Markup:
    figure = strip_chart(chart.strips, title=chart.title, y_label=chart.y_label, highest=chart.highest)
    ranges = "; ".join(
        f"{label}{f' ({name})' if len(sets) > 1 else ''} from {min(dots)[0]:.3g} to {max(dots)[0]:.3g}"
        for label, sets in chart.strips.items()
        for name, dots in sets.items()
        if dots
    )
    return inline_svg(figure, f"{chart.title} of every case: {ranges}.")


def _hollow(chart: Chart) -> list[bool]:
    return [
        hollow for sets in chart.strips.values() for dots in sets.values() for _, hollow in dots if hollow
    ]


def _shown(value: float, column: Column, *, signed: bool | None = None) -> str:
    """A number as its column writes it; an en dash for NaN."""
    if math.isnan(value):
        return _NONE
    sign = column.signed if signed is None else signed
    size = abs(value)
    text = f"{size:.{column.decimals}%}" if column.percent else f"{size:,.{column.decimals}f}"
    return with_sign(value, text, plus=sign)


def _interval(found: Value, column: Column, *, signed: bool | None = None) -> str:
    """An interval in brackets; nothing if there is none."""
    if math.isnan(found.low) or math.isnan(found.high):
        return ""
    low, high = (_shown(end, column, signed=signed) for end in (found.low, found.high))
    return f"[{low}, {high}]"


def _p(p: float) -> str:
    if math.isnan(p):
        return _NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
