"""Task and group levels: cross-entropy over the samples of all ranks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hssl_dist import collectives
from hssl_dist.losses.scaling import at_least_float32, scale_to_ranks


def classification(logits: Float[Tensor, "b classes"], targets: Int[Tensor, " b"]) -> Float[Tensor, ""]:
    """The rank's share of the mean cross-entropy over all ranks' samples; ranks may hold different `b`."""
    total = F.cross_entropy(at_least_float32(logits), targets, reduction="sum")
    return scale_to_ranks(total, targets.shape[0])


def accuracy(logits: Float[Tensor, "b classes"], targets: Int[Tensor, " b"]) -> float:
    """Share of all ranks' samples whose largest logit is the target's, 0..1. All ranks must call it."""
    correct = (logits.argmax(dim=1) == targets).sum()
    counts = torch.stack((correct, torch.full_like(correct, targets.shape[0]))).double()
    hits, samples = collectives.all_reduce_sum(counts).tolist()
    return float(hits / max(samples, 1.0))
