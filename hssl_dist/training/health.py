"""Whether pretraining is healthy: collapse, chance level, non-finite values.

Measures are over the embeddings of the global batch, so they do not depend on the number of ranks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MOST_SAMPLES = 1024
_AT_CHANCE = 0.98
_LAST_SHARE = 0.2


def embedding_health(first: Float[Tensor, "n d"], second: Float[Tensor, "n d"]) -> dict[str, float]:
    """Measures of unit-length embeddings of two views, row by row of the same samples.

    Of the first 1024 samples, to bound memory (it grows with the square) in large batches:
    - `image_accuracy`: share of embeddings whose nearest other embedding is the other view of their sample.
    - `effective_rank`: exp of the entropy of the normalised singular values (Roy and Vetterli 2007), 1 to d.
    - `embedding_std`: mean standard deviation of a coordinate times sqrt(d); 1 if spread evenly, 0 collapsed.
    - `alignment`: mean squared distance of the two views; `uniformity`: log of the mean of
      exp(-2 distance^2) over all pairs (Wang and Isola 2020); lower is better for both.
    """
    first, second = first[:_MOST_SAMPLES], second[:_MOST_SAMPLES]
    z = torch.cat((first, second)).detach().double()
    count = first.shape[0]
    similarity = z @ z.T
    similarity.fill_diagonal_(-math.inf)
    partner = torch.arange(2 * count, device=z.device).roll(count)
    singular = torch.linalg.svdvals(z)
    share = singular / singular.sum()
    squared = (2.0 - 2.0 * similarity).clamp_min(0.0)
    pairs = squared[~torch.eye(2 * count, dtype=torch.bool, device=z.device)]
    return {
        "image_accuracy": float((similarity.argmax(dim=1) == partner).double().mean()),
        "effective_rank": float(torch.exp(-torch.xlogy(share, share).sum())),
        "embedding_std": float(z.std(dim=0, correction=0).mean()) * math.sqrt(z.shape[1]),
        "alignment": float((z[:count] - z[count:]).square().sum(dim=1).mean()),
        "uniformity": float(torch.logsumexp(-2.0 * pairs, dim=0) - math.log(pairs.numel())),
    }


def chance_level(global_batch: int) -> float:
    """The image loss of embeddings that tell nothing: each of the 2N-1 other embeddings equally likely."""
    return math.log(2 * global_batch - 1)


def chance_warning(history: Sequence[tuple[int, Mapping[str, float]]], global_batch: int) -> str | None:
    """A warning if the image loss is still at chance over the last fifth of its logged steps."""
    losses = [metrics["loss_image"] for _, metrics in history if "loss_image" in metrics]
    if not losses:
        return None
    last = losses[-max(1, round(len(losses) * _LAST_SHARE)) :]
    mean, chance = sum(last) / len(last), chance_level(global_batch)
    if mean < _AT_CHANCE * chance:
        return None
    return (
        f"the image loss stayed at {mean:.3f}, chance is {chance:.3f}: the embeddings tell no samples apart; "
        "try more encoder.steps, another encoder.learning_rate or a lower objective.temperature"
    )


def finite_samples(values: Sequence[Tensor], count: int) -> Bool[Tensor, " count"]:
    """Which of `count` samples are finite in all tensors, whose first axis repeats the samples."""
    finite = torch.ones(count, dtype=torch.bool)
    for value in values:
        rows = torch.isfinite(value.detach().flatten(start_dim=1)).all(dim=1).cpu()
        finite &= rows.view(-1, count).all(dim=0)
    return finite
