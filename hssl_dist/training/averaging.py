"""An exponential moving average of a network's weights.

    a_t = d_t a_(t-1) + (1 - d_t) w_t,   d_t = min(decay, (1 + t) / (10 + t)),   a_0 = w_0

t counts the updates from 1. The smaller first decays (those of TensorFlow's ExponentialMovingAverage) let the
average leave the initial weights behind in a short run.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn


class WeightAverage:
    """The average lies in `network`, a copy of the one that is trained, ready to be validated."""

    def __init__(self, trained: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(trained).requires_grad_(requires_grad=False)
        self._decay = decay

    @torch.no_grad()
    def update(self, trained: nn.Module, step: int) -> None:
        """Take in the weights after optimiser step `step` (from 1)."""
        weight = 1.0 - min(self._decay, (1.0 + step) / (10.0 + step))
        for average, value in zip(self.network.parameters(), trained.parameters(), strict=True):
            average.lerp_(value, weight)
