"""Task and group levels: cross-entropy over the samples of all ranks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hssl_dist import collectives
from hssl_dist.losses.scaling import at_least_float32, scale_to_ranks, scale_to_total


def classification(
    logits: Float[Tensor, "b classes"],
    targets: Int[Tensor, " b"],
    *,
    balanced: bool = False,
    total_rows: int | None = None,
) -> Float[Tensor, ""]:
    """The rank's share of the mean cross-entropy over all ranks' samples; ranks may hold different `b`.

    `balanced` takes the mean within each class first, then over the classes that any rank has: a sample
    counts inversely to the frequency of its class in the global batch. `total_rows`, over all ranks, may be
    given: then ranks exchange at most the classes' frequencies.
    """
    logits = at_least_float32(logits)
    if not balanced:
        cost = F.cross_entropy(logits, targets, reduction="sum")
        if total_rows is not None:
            return scale_to_total(cost, total_rows)
        return scale_to_ranks(cost, targets.shape[0])
    # torch.bincount would make the host wait for the largest target.
    own = targets.new_zeros(logits.shape[1]).index_add(0, targets, torch.ones_like(targets))
    counts = collectives.all_reduce_sum(own)
    costs = F.cross_entropy(logits, targets, reduction="none")
    total = (costs / counts[targets]).sum()
    return scale_to_total(total, (counts > 0).sum())


def accuracy(logits: Float[Tensor, "b classes"], targets: Int[Tensor, " b"]) -> float:
    """Share of all ranks' samples whose largest logit is the target's, 0..1. All ranks must call it."""
    correct = (logits.argmax(dim=1) == targets).sum()
    counts = torch.stack((correct, torch.full_like(correct, targets.shape[0]))).double()
    hits, samples = collectives.all_reduce_sum(counts).tolist()
    return float(hits / max(samples, 1.0))
