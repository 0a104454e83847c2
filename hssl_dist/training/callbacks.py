"""What a training loop tells the outside, and asks it; the loop knows neither Ray nor MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping


class Callbacks(Protocol):
    """What begins with `on_` is called on rank 0 alone, the rest on every rank."""

    def on_step(self, step: int) -> None:
        """Optimiser step `step` (from 1) is done."""

    def on_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of a logged step."""

    def on_warning(self, step: int, text: str) -> None:
        """Training is not healthy (each kind of fault is told once), or a checkpoint could not be saved."""

    def on_checkpoint(self, step: int, url: str, seconds: float) -> None:
        """A checkpoint is committed, after so many seconds of writing."""

    def should_stop(self) -> bool:
        """Whether to save a checkpoint and stop after this step; one rank that says so stops all."""

    def should_look(self) -> bool:
        """Whether it is time to ask `is_losing_ranks`; one rank that says so has all ask, after this step."""

    def is_losing_ranks(self) -> bool:
        """Whether machines of this run are about to be taken away, so that a checkpoint is due; told once of
        each such event, on all ranks after the same step.
        """
