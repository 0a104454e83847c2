"""What supervised training reports, and the history of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

from hssl_dist.segmentation import DiceMeans

_AS_NOW = ("learning_rate", "gradient_scale")

History = list[tuple[int, dict[str, float]]]


class Observer(Protocol):
    """Who is told how training goes; steps count from 1."""

    def on_step(self, step: int) -> None:
        """Optimiser step `step` is done."""

    def on_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of the steps since the last such call, or of a validation."""

    def on_warning(self, step: int, text: str) -> None:
        """A checkpoint could not be saved; training goes on."""


class Log:
    """Means over the steps between two logs, and the history of all that was logged."""

    def __init__(self, observer: Observer) -> None:
        self.history: History = []
        self._observer = observer
        self._values: list[dict[str, float]] = []

    def add(self, **values: float) -> None:
        """Values of one step; a skipped one has a gradient that is no number, which is left out."""
        self._values.append({key: value for key, value in values.items() if math.isfinite(value)})

    def flush(self, step: int) -> None:
        """Report the means since the last call; learning rate and gradient scale as they are now."""
        found: dict[str, list[float]] = {}
        for values in self._values:
            for key, value in values.items():
                found.setdefault(key, []).append(value)
        self._values = []
        self._report(
            step,
            {key: each[-1] if key in _AS_NOW else sum(each) / len(each) for key, each in found.items()},
        )

    def validated(self, step: int, means: DiceMeans, classes: Mapping[int, str]) -> None:
        """Report a validation: the mean and each class that any case has."""
        metrics = {"val_dice": means.overall}
        metrics |= {f"val_dice/{classes[value]}": score for value, score in means.per_class.items()}
        self._report(step, {key: score for key, score in metrics.items() if not math.isnan(score)})

    def as_json(self) -> dict[str, Any]:
        """The history, and the values of the steps since the last log."""
        return {"history": self.history, "since": self._values}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Take over what `as_json` gave."""
        self.history = [(step, metrics) for step, metrics in saved["history"]]
        self._values = list(saved["since"])

    def _report(self, step: int, metrics: dict[str, float]) -> None:
        self.history.append((step, metrics))
        self._observer.on_metrics(step, metrics)
