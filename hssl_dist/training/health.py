"""Whether pretraining is healthy: collapse, chance level, non-finite values.

Measures are over the embeddings of the global batch, so they do not depend on the number of ranks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hssl_dist.config.pretrain import PretrainConfig

MOST_SAMPLES = 1024
"""Measures whose cost grows with the square look at so many samples of a batch."""

_AT_CHANCE = 0.98
_LEAST_RANK = 1.5
_LEAST_STD = 0.05
_LAST_SHARE = 0.2
_LEAST_WINDOW = 5


def embedding_health(first: Float[Tensor, "n d"], second: Float[Tensor, "n d"]) -> dict[str, float]:
    """Measures of unit-length embeddings of two views, row by row of the same samples.

    Of the first 1024 samples, to bound memory (it grows with the square) in large batches:
    - `image_accuracy`: share of embeddings whose nearest other embedding is the other view of their sample.
    - `effective_rank`: exp of the entropy of the normalised singular values (Roy and Vetterli 2007), 1 to d.
    - `embedding_std`: mean standard deviation of a coordinate times sqrt(d); 1 if spread evenly, 0 collapsed.
    - `alignment`: mean squared distance of the two views; `uniformity`: log of the mean of
      exp(-2 distance^2) over all pairs (Wang and Isola 2020); lower is better for both.
    """
    first, second = first[:MOST_SAMPLES], second[:MOST_SAMPLES]
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


def chance_level(relatives: Int[Tensor, " n"]) -> float:
    """The image loss of embeddings that tell nothing: a mean of log(1 + number of negatives), 0 without any.

    Samples of equal `relatives` are no negatives of each other.
    """
    _, kinds, sizes = torch.unique(relatives, return_inverse=True, return_counts=True)
    negatives = 2 * (len(relatives) - sizes[kinds]).double()
    negatives = negatives[negatives > 0]
    return float(negatives.log1p().mean()) if len(negatives) else 0.0


def findings(history: Sequence[tuple[int, Mapping[str, float]]], config: PretrainConfig) -> dict[str, str]:
    """What is wrong with the embeddings at the end of a history of logged steps, by kind of fault.

    Judged by means over the last logged steps of the encoder stage: a fifth of all it will have, 5 at least,
    none of the warm-up. A history with fewer of them has no findings.
    """
    stage = config.encoder
    window = max(_LEAST_WINDOW, round(_LAST_SHARE * stage.steps / config.log_every_steps))
    last = [entry for entry in history[-window:] if "loss_image" in entry[1]]
    if len(last) < window or last[0][0] <= stage.warmup_steps:
        return {}

    def mean(key: str) -> float:
        return sum(metrics[key] for _, metrics in last) / window

    found, steps = {}, f"steps {last[0][0]} to {last[-1][0]}"
    rank, std = mean("effective_rank"), mean("embedding_std")
    if rank < _LEAST_RANK:
        found["rank"] = (
            f"{steps}: the embeddings have collapsed: their effective rank is {rank:.2f}, of "
            f"{config.objective.projection_size} at most; {_REMEDY}"
        )
    if std < _LEAST_STD:
        found["std"] = (
            f"{steps}: the embeddings have collapsed: their standard deviation is {std:.3f}, it is 1 where "
            f"they are spread evenly; {_REMEDY}"
        )
    loss, chance = mean("loss_image"), mean("image_chance")
    if loss >= _AT_CHANCE * chance:
        found["chance"] = (
            f"{steps}: the image loss stayed at {loss:.3f}, chance is {chance:.3f}: the embeddings tell no "
            "samples apart; try more encoder.steps, another encoder.learning_rate or a lower "
            "objective.temperature"
        )
    return found


def batch_finding(config: PretrainConfig, tasks: int, blocks: int) -> str | None:
    """What is wrong with all global batches of the encoder stage, of so many blocks out of so many tasks."""
    levels = [level for level in ("task", "group") if getattr(config.objective, f"{level}_weight")]
    if blocks > 1 or tasks == 1 or not levels or not config.encoder.steps:
        return None
    batch, block = config.global_batch, config.sampling.block_size
    smaller = f"set sampling.block_size to {batch // 2} at most, or " if batch > 1 else ""
    return (
        f"each global batch of {batch} is one block, of one of the {tasks} tasks: the heads of "
        f"{' and '.join(levels)} learn one class and unlearn it with the next batch; "
        f"{smaller}raise global_batch to {2 * block} at least"
    )


_REMEDY = "try a lower encoder.learning_rate, a larger global_batch or more than one task in it"


def health_warnings(
    history: Sequence[tuple[int, Mapping[str, float]]], config: PretrainConfig
) -> dict[str, str]:
    """The first finding of each kind over the course of a history."""
    first: dict[str, str] = {}
    for stop in range(1, len(history) + 1):
        first = findings(history[:stop], config) | first
    return first


def finite_samples(values: Sequence[Tensor], count: int) -> Bool[Tensor, " count"]:
    """Which of `count` samples are finite in all tensors, whose first axis repeats the samples."""
    finite = torch.ones(count, dtype=torch.bool)
    for value in values:
        rows = torch.isfinite(value.detach().flatten(start_dim=1)).all(dim=1).cpu()
        finite &= rows.view(-1, count).all(dim=0)
    return finite
