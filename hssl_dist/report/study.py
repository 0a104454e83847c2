"""The report of a label-efficiency study: a verdict in words, then the numbers and pictures behind it.

Dice and its differences come in as shares, 0 to 1, and are written in points, 0 to 100. Whatever a number is
shown as, its element's `value` is the one of `table.csv`, or that of `results.json` with six decimals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from hssl_dist.report.curves import line_chart
from hssl_dist.report.effects import Interval, forest, interval_chart, scatter
from hssl_dist.report.evaluation import Picture, Value
from hssl_dist.report.figures import Style, inline_svg, page_colour, styles
from hssl_dist.report.montage import contour_colour
from hssl_dist.report.page import percent, png_source, render
from hssl_dist.report.study_words import Statement, as_dice, as_difference, as_p, as_size, exact, share

Curve = Sequence[tuple[float, float]]

HEALTH = {
    "loss_image": "image loss",
    "image_over_chance": "image loss, of chance",
    "image_accuracy": "image accuracy",
    "task_probe_accuracy": "task accuracy, linear probe",
    "group_probe_accuracy": "group accuracy, linear probe",
    "effective_rank": "effective rank of the embeddings",
    "embedding_std": "spread of the embeddings, 1 is even",
    "loss_dense": "dense loss",
    "loss_restoration": "restoration loss",
}
"""Metrics of pretraining that are charted, and what the page calls them."""


@dataclass(frozen=True, slots=True)
class DiceRow:
    """One task, share and arm: a line of `table.csv`. `labelled` is the fewest and most labelled patients."""

    task: str
    fraction: float
    arm: str
    labelled: tuple[int, int]
    subsets: int
    seeds: int
    patients: int
    dice: Value
    sd: float
    difference: Value | None
    p: float
    p_holm: float


@dataclass(frozen=True, slots=True)
class DifferenceRow:
    """A paired difference that is not to scratch at the same share; NaN for a p that is not asked for."""

    task: str
    first: str
    first_fraction: float
    other: str
    other_fraction: float
    difference: Value
    sizes: tuple[int, ...]
    p_holm: float


@dataclass(frozen=True, slots=True)
class ConvergenceRow:
    """Mean validation Dice over the steps, and what their last quarter gave."""

    task: str
    fraction: float
    arm: str
    runs: int
    curve: Curve
    gain: Value
    converged: bool | None
    best_step: float


@dataclass(frozen=True, slots=True)
class PowerRow:
    """Power for a true difference as the study was run; `needed` units by level, None if none are enough."""

    task: str
    fraction: float
    arm: str
    sizes: Mapping[str, int]
    unseen: Sequence[str]
    standard_error: float
    power: float
    needed: Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class Cases:
    """Cases of one task: rows of pictures, one picture per arm; `classes` names the outlines' colours."""

    task: str
    about: str
    classes: Mapping[int, str]
    rows: Sequence[Sequence[Picture]]


@dataclass(frozen=True, slots=True)
class EmbeddingMap:
    """Embeddings of one encoder on their two principal axes, by task; `shares` of variance of the axes.

    `accuracy` is that of a vote of the `neighbours` nearest cases of other patients, `chance` the share of
    the largest task.
    """

    title: str
    points: Mapping[str, Sequence[tuple[float, float]]]
    shares: tuple[float, float]
    neighbours: int
    accuracy: float
    chance: float


@dataclass(frozen=True, slots=True)
class StudyData:
    """All the report shows; what is empty is left out. `titles` names the arms, in order, scratch first."""

    title: str
    lead: str
    part: str
    main_arm: str
    titles: Mapping[str, str]
    reference: str
    facts: Sequence[tuple[str, str]]
    verdicts: Sequence[tuple[str, Sequence[Statement]]]
    missing: Sequence[str]
    unpaired: Sequence[str]
    rows: Sequence[DiceRow]
    pairs: Sequence[DifferenceRow]
    gaps: Sequence[DifferenceRow]
    convergence: Sequence[ConvergenceRow]
    power: Sequence[PowerRow]
    confidence: float
    difference: float
    comparisons: int
    converged_below: float
    arms: Sequence[tuple[str, str]] = ()
    cases: Sequence[Cases] = ()
    embeddings: Sequence[EmbeddingMap] = ()
    health: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)
    selection: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()
    notes: Sequence[tuple[str, str]] = ()
    lineage: Sequence[tuple[str, str]] = ()


def study_report(data: StudyData) -> str:
    """The report as one self-contained HTML page; texts from the data are escaped. Equal data, equal page."""
    look = {data.titles[arm]: style for arm, style in styles(data.titles, data.reference).items()}
    tasks = list(dict.fromkeys(row.task for row in data.rows))
    fractions = sorted({row.fraction for row in data.rows})
    return render(
        "study.html.j2",
        title=data.title,
        data=data,
        tasks=tasks,
        fractions=fractions,
        named=lambda arm: data.titles[arm],
        cells={(row.task, row.fraction, row.arm): row for row in data.rows},
        colours={arm: page_colour(look[title].colour) for arm, title in data.titles.items()},
        dice_charts=[chart for task in tasks if (chart := _dice_chart(data, task, look))],
        forests=[chart for task in tasks if (chart := _forest(data, task, look))],
        curves={task: _curves(data, task, look) for task in tasks},
        maps=[(found, _map(found)) for found in data.embeddings],
        health=_health(data),
        cases=[
            (found, [[(png_source(shot.png), shot.caption) for shot in row] for row in found.rows])
            for found in data.cases
        ],
        level=f"{data.confidence:.0%}",
        contour=contour_colour,
        as_dice=as_dice,
        as_difference=as_difference,
        as_p=as_p,
        as_size=as_size,
        exact=exact,
        share=share,
        shown_share=percent,
        isnan=math.isnan,
    )


# ----------------------------------------------------------------------------------------------------- charts


def _dice_chart(data: StudyData, task: str, look: Mapping[str, Style]) -> Markup | None:
    """Means of the shares at which there are some; None without any."""
    series: dict[str, dict[str, Interval]] = {title: {} for title in data.titles.values()}
    known = [row for row in data.rows if row.task == task and not math.isnan(row.dice.value)]
    if not known:
        return None
    for row in sorted(known, key=lambda row: row.fraction):
        series[data.titles[row.arm]][share(row.fraction)] = _points(row.dice)
    figure = interval_chart(series, look=look, title=task, x_label="labels used", y_label="mean Dice, points")
    said = "; ".join(
        f"{name} " + ", ".join(f"{value:.1f} at {setting}" for setting, (value, _, _) in values.items())
        for name, values in series.items()
        if values
    )
    return inline_svg(figure, f"{task}, mean Dice by share of labels: {said}.")


def _forest(data: StudyData, task: str, look: Mapping[str, Style]) -> Markup | None:
    groups: dict[str, list[tuple[str, Interval]]] = {}
    for row in data.rows:
        if row.task == task and row.difference is not None and not math.isnan(row.difference.value):
            group = groups.setdefault(f"{share(row.fraction)} of labels", [])
            group.append((data.titles[row.arm], _points(row.difference)))
    if not groups:
        return None
    figure = forest(
        list(groups.items()),
        look=look,
        title=task,
        x_label=f"Dice points above {data.titles[data.reference]}",
    )
    said = "; ".join(
        f"{group}: " + ", ".join(f"{name} {value:+.2f}" for name, (value, _, _) in members)
        for group, members in groups.items()
    )
    return inline_svg(figure, f"{task}, paired differences to {data.titles[data.reference]}. {said}.")


def _curves(data: StudyData, task: str, look: Mapping[str, Style]) -> list[Markup]:
    """A chart of validation Dice for each share that has curves."""
    charts = []
    for fraction in sorted({row.fraction for row in data.convergence if row.task == task}):
        curves = {
            data.titles[row.arm]: [(step, 100 * dice) for step, dice in row.curve]
            for row in data.convergence
            if (row.task, row.fraction) == (task, fraction) and row.curve
        }
        if curves:
            title = f"{task}, {share(fraction)} of labels"
            figure = line_chart(curves, title=title, y_label="validation Dice, points", look=look)
            ends = ", ".join(f"{name} ends at {points[-1][1]:.1f}" for name, points in curves.items())
            charts.append(inline_svg(figure, f"{title}, mean validation Dice over the steps: {ends}."))
    return charts


def _map(found: EmbeddingMap) -> Markup:
    x, y = (f"axis {place} ({percent(part)} of the variance)" for place, part in enumerate(found.shares, 1))
    figure = scatter(found.points, look=styles(found.points), title=found.title, x_label=x, y_label=y)
    said = ", ".join(f"{task} {len(points)} cases" for task, points in found.points.items())
    return inline_svg(figure, f"{found.title}: embeddings on two principal axes, {said}.")


def _health(data: StudyData) -> list[Markup]:
    charts = []
    for metric, title in HEALTH.items():
        curves = {run: metrics[metric] for run, metrics in data.health.items() if metrics.get(metric)}
        if curves:
            figure = line_chart(curves, title=title, look=styles(data.health))
            ends = ", ".join(f"{name} ends at {points[-1][1]:.3g}" for name, points in curves.items())
            charts.append(inline_svg(figure, f"{title} over pretraining steps: {ends}."))
    return charts


def _points(value: Value) -> Interval:
    return 100 * value.value, 100 * value.low, 100 * value.high
