"""What a training loop tells the outside, and asks it; the loop knows neither Ray nor MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping


class Callbacks(Protocol):
    """Only `should_stop` is called on every rank, the rest on rank 0 alone."""

    def on_step(self, step: int) -> None:
        """Optimiser step `step` (from 1) is done."""

    def on_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of a logged step."""

    def on_warning(self, step: int, text: str) -> None:
        """Training is not healthy (each kind of fault is told once), or a checkpoint could not be saved."""

    def on_checkpoint(self, step: int, url: str) -> None:
        """A checkpoint is committed."""

    def should_stop(self) -> bool:
        """Whether to save a checkpoint and stop after this step; one rank that says so stops all."""
