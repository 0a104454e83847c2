"""The weights that validated best so far, and how long ago that was."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from hssl_dist.segmentation import DiceMeans, MeansByWay


@dataclass(slots=True)
class Best:
    """Weights (on the CPU), their step and validation; `stale` counts the validations since then.

    Whole predictions are compared, the way `never`: components are dropped only when a model is delivered.
    """

    state: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    validation: MeansByWay | None = None
    stale: int = 0

    def offer(self, step: int, means: MeansByWay, network: nn.Module) -> None:
        """Take the weights if they are better, the earliest of equals; a mean of NaN is no score."""
        score = means["never"].overall
        if math.isnan(score):
            return
        if self.validation is None or score > self.validation["never"].overall:
            self.take(step, means, network)
        else:
            self.stale += 1

    def take(self, step: int, means: MeansByWay | None, network: nn.Module) -> None:
        """Take the network's weights."""
        self.step, self.validation, self.stale = step, means, 0
        self.state = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}

    def as_json(self) -> dict[str, Any]:
        """All but the weights; NaN, which JSON has not, is null."""
        validation = None
        if self.validation is not None:
            validation = {way: _as_json(means) for way, means in self.validation.items()}
        return {"step": self.step, "stale": self.stale, "validation": validation}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any], state: dict[str, Tensor]) -> Best:
        """What `as_json` gave, with its weights."""
        validation = None
        if saved["validation"] is not None:
            validation = {way: _from_json(means) for way, means in saved["validation"].items()}
        return cls(state, saved["step"], validation, saved["stale"])


def _as_json(means: DiceMeans) -> dict[str, Any]:
    return {
        "per_class": {str(value): _null(dice) for value, dice in means.per_class.items()},
        "overall": _null(means.overall),
    }


def _from_json(saved: Mapping[str, Any]) -> DiceMeans:
    per_class = {int(value): _nan(dice) for value, dice in saved["per_class"].items()}
    return DiceMeans(per_class, _nan(saved["overall"]))


def _null(score: float) -> float | None:
    return None if math.isnan(score) else score


def _nan(score: float | None) -> float:
    return math.nan if score is None else score
