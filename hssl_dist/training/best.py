"""The weights that validated best so far, and how long ago that was."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from hssl_dist.segmentation import DiceMeans


@dataclass(slots=True)
class Best:
    """Weights (on the CPU), their step and validation; `stale` counts the validations since then."""

    state: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    validation: DiceMeans | None = None
    stale: int = 0

    def offer(self, step: int, means: DiceMeans, network: nn.Module) -> None:
        """Take the weights if they are better, the earliest of equals; a mean of NaN is no score."""
        if math.isnan(means.overall):
            return
        if self.validation is None or means.overall > self.validation.overall:
            self.take(step, means, network)
        else:
            self.stale += 1

    def take(self, step: int, means: DiceMeans | None, network: nn.Module) -> None:
        """Take the network's weights."""
        self.step, self.validation, self.stale = step, means, 0
        self.state = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}

    def as_json(self) -> dict[str, Any]:
        """All but the weights; NaN, which JSON has not, is null."""
        validation = None
        if self.validation is not None:
            per_class = self.validation.per_class.items()
            validation = {
                "per_class": {str(value): None if math.isnan(dice) else dice for value, dice in per_class},
                "overall": self.validation.overall,
            }
        return {"step": self.step, "stale": self.stale, "validation": validation}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any], state: dict[str, Tensor]) -> Best:
        """What `as_json` gave, with its weights."""
        validation = None
        if saved["validation"] is not None:
            per_class = saved["validation"]["per_class"].items()
            validation = DiceMeans(
                {int(value): math.nan if dice is None else dice for value, dice in per_class},
                saved["validation"]["overall"],
            )
        return cls(state, saved["step"], validation, saved["stale"])
