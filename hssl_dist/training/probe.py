"""How well a linear rule reads task or group from features: what the features say, not what a head learnt."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

_RIDGE = 0.1  # of the mean square of a standardised feature
_LEAST_STD = 1e-6


def probe_accuracy(
    features: Float[Tensor, "n d"], targets: Int[Tensor, " n"], half: Bool[Tensor, " n"]
) -> float:
    """Share of rows that a ridge regression, fitted on the other half of the rows, tells right, 0..1.

    Closed form: one-hot targets on features standardised by the fitted half, the largest answer wins. Rows
    of one region must be in one half. A class that one half lacks cannot be told there and counts as wrong.
    """
    x, classes = features.detach().double(), int(targets.max()) + 1
    right = 0
    for fitted in (half, ~half):
        std, mean = torch.std_mean(x[fitted], dim=0, correction=0)
        rows = (x - mean) / std.clamp_min(_LEAST_STD)
        known = F.one_hot(targets[fitted], classes).double()
        centre = known.mean(dim=0)
        # By the matrix of rows and not of features: there are seldom more rows, and it is never singular.
        products = rows[fitted] @ rows[fitted].T / x.shape[1]
        products.diagonal().add_(_RIDGE)
        answer = rows[~fitted] @ (rows[fitted].T @ torch.linalg.solve(products, known - centre)) / x.shape[1]
        right += int(((answer + centre).argmax(dim=1) == targets[~fitted]).sum())
    return right / len(targets)
