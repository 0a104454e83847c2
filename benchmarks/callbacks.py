"""Callbacks of a training that say nothing and ask for nothing: what a benchmark adds to."""

from __future__ import annotations

from collections.abc import Mapping


class Silent:
    """See `hssl_dist.training.callbacks.Callbacks`."""

    def on_step(self, step: int) -> None:
        """Not of interest."""

    def on_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Not of interest."""

    def on_warning(self, step: int, text: str) -> None:
        """Not of interest."""

    def on_checkpoint(self, step: int, url: str, seconds: float) -> None:
        """Not of interest."""

    def should_stop(self) -> bool:
        """Never."""
        return False

    def should_look(self) -> bool:
        """Never."""
        return False

    def is_losing_ranks(self) -> bool:
        """Never."""
        return False
