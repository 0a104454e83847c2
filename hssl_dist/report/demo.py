"""The demo's report: what ran, how training went, what a fine-tuned model sees, and where it comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from hssl_dist.report.curves import line_chart
from hssl_dist.report.figures import inline_svg
from hssl_dist.report.montage import contour_colour
from hssl_dist.report.page import png_source, render, score

Curves = Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class Stage:
    """A step of the demo, what it did in a few words, and how long it took."""

    name: str
    result: str
    seconds: float


@dataclass(frozen=True, slots=True)
class DatasetRow:
    """One preprocessed dataset; `report` is the path of its quality report, relative to this one."""

    name: str
    layout: str
    task: str
    group: str
    cases: int
    patients: int
    labelled: int
    report: str


@dataclass(frozen=True, slots=True)
class Arm:
    """One fine-tuned model.

    `dice` has the scores of each class over the test cases, NaN where the class is in neither label nor
    prediction. `pictures` is a PNG of the best, median and worst case: image, truth, prediction.
    """

    name: str
    start: str
    model: str
    run_id: str
    loss: Sequence[tuple[float, float]]
    validation: Sequence[tuple[float, float]]
    dice: Mapping[str, Sequence[float]]
    pictures: bytes

    def mean(self, name: str) -> float | None:
        """Mean Dice of a class over the test cases that have a score."""
        known = [value for value in self.dice[name] if not math.isnan(value)]
        return sum(known) / len(known) if known else None

    @property
    def overall(self) -> float | None:
        """Mean of the classes' means."""
        means = [value for name in self.dice if (value := self.mean(name)) is not None]
        return sum(means) / len(means) if means else None


@dataclass(frozen=True, slots=True)
class DemoData:
    """All the report shows. `losses` and `accuracies` are the pretraining's terms over its steps."""

    stages: Sequence[Stage]
    datasets: Sequence[DatasetRow]
    losses: Curves
    accuracies: Curves
    arms: Sequence[Arm]
    dataset: str
    classes: Mapping[int, str]
    training_patients: int
    labelled_patients: int
    test_patients: int
    test_cases: int
    workers: int
    lineage: Sequence[tuple[str, str]] = field(default=())


def demo_report(data: DemoData) -> str:
    """The report as one self-contained HTML page; texts from the data are escaped."""
    return render(
        "demo.html.j2",
        title="From raw scans to a fine-tuned model",
        data=data,
        facts=_facts(data),
        pretraining_charts=_pretraining_charts(data),
        finetuning_charts=_finetuning_charts(data.arms),
        arms=[(arm, png_source(arm.pictures)) for arm in data.arms],
        colours={name: contour_colour(value) for value, name in sorted(data.classes.items())},
        total_s=sum(stage.seconds for stage in data.stages),
    )


def _facts(data: DemoData) -> list[tuple[str, str]]:
    total_s = sum(stage.seconds for stage in data.stages)
    return [
        ("cases preprocessed", f"{sum(row.cases for row in data.datasets)}"),
        ("pretraining workers", f"{data.workers}"),
        ("labelled patients used", f"{data.labelled_patients} of {data.training_patients}"),
        *((f"mean Dice {arm.name}", score(arm.overall)) for arm in data.arms),
        ("from start to end", f"{int(total_s // 60)} min {int(total_s % 60)} s"),
    ]


def _pretraining_charts(data: DemoData) -> list[Markup]:
    return [
        _chart(data.losses, "Terms of the loss", "loss"),
        _chart(data.accuracies, "Accuracy of each level", "accuracy", (0.0, 1.02)),
    ]


def _finetuning_charts(arms: Sequence[Arm]) -> list[Markup]:
    return [
        _chart({arm.name: arm.loss for arm in arms}, "Training loss", "Dice + cross-entropy"),
        _chart(
            {arm.name: arm.validation for arm in arms}, "Validation, mean over classes", "Dice", (0.0, 1.0)
        ),
    ]


def _chart(curves: Curves, title: str, y_label: str, y_range: tuple[float, float] | None = None) -> Markup:
    ends = ", ".join(f"{label} ends at {points[-1][1]:.3g}" for label, points in curves.items() if points)
    figure = line_chart(curves, title=title, y_label=y_label, y_range=y_range)
    return inline_svg(figure, f"{title} over training steps: {ends}.")
