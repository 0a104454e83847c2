"""The encoder stage's terms, on both views of each region; all couple the samples of the global batch.

    image        NT-Xent over the global batch
    task, group  cross-entropy over the datasets' tasks and groups

With several depths a term is the mean over them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hssl_dist.augment import two_views
from hssl_dist.config.pretrain import ObjectiveConfig, PretrainConfig
from hssl_dist.losses.hierarchy import classification
from hssl_dist.losses.nt_xent import nt_xent
from hssl_dist.networks.pretraining import PretrainingOutput
from hssl_dist.training.objective import Kept, Prepared, Samples, StageObjective, Terms


def _weights(objective: ObjectiveConfig) -> Mapping[str, float]:
    return {
        "image": objective.image_weight,
        "task": objective.task_weight,
        "group": objective.group_weight,
    }


def _prepare(samples: Samples, config: PretrainConfig) -> Prepared:
    views = two_views(samples.regions.values(), samples.seeds, config.sampling.patch_size, config.views)
    return Prepared(torch.cat((views.first, views.second)))


def _kept(output: PretrainingOutput, prepared: Prepared, config: PretrainConfig) -> Kept:  # noqa: ARG001
    said = {
        "embedding": output.embeddings,
        "task": output.task_logits,
        "group": output.group_logits,
        "pooled": output.pooled,
    }
    return {name: tuple(torch.stack(x.chunk(2)) for x in depths) for name, depths in said.items()}


def _coupled(kept: Kept, samples: Samples, temperature: Tensor, objective: ObjectiveConfig) -> Terms:
    total_rows = None if samples.counts is None else 2 * sum(samples.counts)
    groups = None if objective.exclude_false_negatives == "none" else samples.relatives
    terms = {}
    if kept["embedding"]:
        terms["image"] = _mean(
            [
                nt_xent(first, second, temperature, groups=groups, counts=samples.counts)
                for first, second in kept["embedding"]
            ]
        )
    for level, targets in (("task", samples.tasks), ("group", samples.groups)):
        if kept[level]:
            terms[level] = _mean(
                [
                    classification(
                        logits.flatten(0, 1),
                        targets.repeat(2),
                        balanced=objective.class_balance,
                        total_rows=total_rows,
                    )
                    for logits in kept[level]
                ]
            )
    return terms


def _separate(
    output: PretrainingOutput,  # noqa: ARG001  (the stages share one signature)
    prepared: Prepared,  # noqa: ARG001
    counts: Mapping[str, Tensor],  # noqa: ARG001
    objective: ObjectiveConfig,  # noqa: ARG001
) -> Terms:
    return {}


def _mean(depths: list[Tensor]) -> Tensor:
    return torch.stack(depths).mean()


ENCODER = StageObjective(_weights, _prepare, lambda _: True, _kept, _coupled, _separate)
