"""Which samples a run's weights are made of: a count, and a digest that is equal if two runs saw the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class SamplesSeen:
    """Of the optimiser steps from the run's first on; a step that was repeated from a checkpoint counts once.

    The digest is the sum, modulo 2^64, of `Batch.digest` over steps and ranks, so the number of ranks does
    not change it. None if the run began with a version that kept none.
    """

    count: int = 0
    digest: int | None = 0

    def with_step(self, count: int, digest: int) -> SamplesSeen:
        """These and those of one more step."""
        total = None if self.digest is None else (self.digest + digest) % (1 << 64)
        return SamplesSeen(self.count + count, total)

    def to_state(self) -> dict[str, Any]:
        """As a checkpoint's `state.json` has it."""
        return {"count": self.count, "digest": None if self.digest is None else f"{self.digest:016x}"}

    @classmethod
    def of_state(cls, state: Mapping[str, Any], count: int) -> SamplesSeen:
        """Of a checkpoint's state. Those of earlier versions have no `samples`; then `count` is taken."""
        saved = state.get("samples")
        if saved is None:
            return cls(count, None)
        return cls(saved["count"], None if saved["digest"] is None else int(saved["digest"], 16))
