"""What a logged step says beyond its losses: of the encoder stage, over the global batch, and of reading."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from hssl_dist import collectives
from hssl_dist.losses.hierarchy import accuracy
from hssl_dist.training.health import MOST_SAMPLES, chance_level, embedding_health
from hssl_dist.training.probe import probe_accuracy

if TYPE_CHECKING:
    from torch import Tensor

    from hssl_dist.config.pretrain import ObjectiveConfig
    from hssl_dist.store import ReadFigures
    from hssl_dist.training.objective import Samples
    from hssl_dist.training.step import StepLoss


def monitored(loss: StepLoss, samples: Samples, objective: ObjectiveConfig) -> dict[str, float]:
    """Measures of an encoder step; empty for the decoder's. All ranks must call it; rank 0 gets all of it.

    - `task_accuracy`, `group_accuracy` of the heads; `task_probe_accuracy`, `group_probe_accuracy` of a
      linear probe on the pooled features (see `probe`); other depths than the deepest add `_depth_<depth>`
    - `embedding_health` of the deepest embeddings
    - `image_chance`, the image loss of embeddings that tell nothing, and `image_over_chance`, the loss's
      ratio to it: 1 has learnt nothing
    """
    if not loss.kept.get("pooled"):
        return {}
    levels = {"task": samples.tasks, "group": samples.groups}
    metrics = {
        f"{level}_accuracy{_suffix(depth, objective)}": accuracy(logits.flatten(0, 1), targets.repeat(2))
        for level, targets in levels.items()
        for depth, logits in zip(objective.depths, loss.kept[level], strict=False)
    }
    if "image" in loss.terms:
        chance = chance_level(collectives.gather_rows(samples.relatives).rows)
        image = float(collectives.all_reduce_sum(loss.terms["image"])) / collectives.world_size()
        metrics |= {"image_chance": chance, "image_over_chance": image / chance if chance else 0.0}
    metrics |= _of_first_samples(loss, samples, objective)
    return metrics


def reading_shares(figures: ReadFigures) -> dict[str, float]:
    """What reading cost this rank; what cannot be told of the interval is left out.

    - `cache_hit_share`: regions cut from a volume that was in the node's cache, of all
    - `bytes_fetched_per_byte_used`: bytes from the store's own storage, to stored bytes of delivered voxels
    - `requests_per_region`: ranges or GETs
    """
    shares: dict[str, float] = {}
    if cached := figures.cache_hits + figures.cache_misses:
        shares["cache_hit_share"] = figures.cache_hits / cached
    if figures.bytes_used:
        shares["bytes_fetched_per_byte_used"] = figures.bytes_fetched / figures.bytes_used
        shares["requests_per_region"] = figures.requests / figures.regions
    return shares


def _of_first_samples(loss: StepLoss, samples: Samples, objective: ObjectiveConfig) -> dict[str, float]:
    """The measures that look at samples together, on rank 0: of so many that they cost little."""
    chosen = samples.numbers < MOST_SAMPLES
    counts = collectives.gather_counts(int(chosen.sum()), chosen.device)

    def gathered(rows: Tensor) -> Tensor:
        return collectives.gather_rows(rows[chosen], counts).rows

    metrics: dict[str, float] = {}
    lead = collectives.rank() == 0
    for depth, views in zip(objective.depths, loss.kept["embedding"], strict=False):
        if depth == min(objective.depths):
            first, second = (gathered(F.normalize(view.float(), dim=1)) for view in views)
            if lead:
                metrics |= embedding_health(first, second)
    levels = {"task": gathered(samples.tasks), "group": gathered(samples.groups)}
    for depth, pooled in zip(objective.depths, loss.kept["pooled"], strict=True):
        features = torch.cat([gathered(view) for view in pooled])
        if lead and len(features) > 2:
            half = torch.arange(len(features) // 2, device=features.device) % 2 == 0
            for level, targets in levels.items():
                key = f"{level}_probe_accuracy{_suffix(depth, objective)}"
                metrics[key] = probe_accuracy(features, targets.repeat(2), half.repeat(2))
    return metrics


def _suffix(depth: int, objective: ObjectiveConfig) -> str:
    return "" if depth == min(objective.depths) else f"_depth_{depth}"
