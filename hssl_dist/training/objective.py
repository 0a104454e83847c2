"""The loss of one pretraining step: regions to views, network and weighted terms.

Encoder stage, on both views of each region:
    image        NT-Xent over the global batch
    task, group  cross-entropy over the datasets' tasks and groups
Decoder stage, on the first view as it is and the second one corrupted:
    dense        correspondence of voxels of the two views that show the same place
    restoration  squared error of the restored voxels
Without dense correspondence only the corrupted views go through the network; without restoration nothing is
corrupted. A term exists if its weight is not zero, and with it the network's head.

A loss is each rank's share of the loss over the global batch: the mean of the ranks' values is the value of
one process on the whole batch, and so are the gradients (see `losses.scaling`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hssl_dist.augment import mask_blocks, matching_points, sample_points, two_views
from hssl_dist.config.pretrain import PretrainConfig
from hssl_dist.losses.dense import dense_contrast
from hssl_dist.losses.hierarchy import accuracy, classification
from hssl_dist.losses.nt_xent import nt_xent
from hssl_dist.losses.restoration import restoration
from hssl_dist.networks.pretraining import PretrainingOutput, Stage

Forward = Callable[[Tensor, Stage], PretrainingOutput]


@dataclass(frozen=True, slots=True)
class Samples:
    """This rank's part of a global batch, on the device; `seeds` hold all randomness of each sample."""

    regions: Float[Tensor, "b 1 z y x"]
    tasks: Int[Tensor, " b"]
    groups: Int[Tensor, " b"]
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StepLoss:
    """Total and terms, before weighting, as this rank's shares; what the network said, for diagnosis.

    `outputs` have a leading axis of one or two entries per sample; `logits` pairs with targets, by level.
    """

    total: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]
    outputs: Sequence[Tensor]
    embeddings: tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]] | None = None
    logits: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def step_loss(
    stage: Stage,
    samples: Samples,
    forward: Forward,
    temperature: Float[Tensor, ""],
    config: PretrainConfig,
    dtype: torch.dtype = torch.float32,
) -> StepLoss:
    """The stage's loss; `forward` runs the network (or its DDP wrapper) once."""
    return _STAGES[stage](samples, forward, temperature, config, dtype)


def accuracies(loss: StepLoss) -> dict[str, float]:
    """Accuracy of the task and group levels over the samples of all ranks; all ranks must call it."""
    return {level: accuracy(logits, targets) for level, (logits, targets) in loss.logits.items()}


def _encoder_loss(
    samples: Samples,
    forward: Forward,
    temperature: Tensor,
    config: PretrainConfig,
    dtype: torch.dtype,
) -> StepLoss:
    objective = config.objective
    views = two_views(samples.regions, samples.seeds, config.sampling.patch_size, config.views)
    output = forward(torch.cat((views.first, views.second)).to(dtype), "encoder")
    terms: dict[str, Tensor] = {}
    logits: dict[str, tuple[Tensor, Tensor]] = {}
    embeddings = None
    if output.embedding is not None:
        first, second = output.embedding.chunk(2)
        embeddings = first, second
        terms["image"] = nt_xent(first, second, temperature)
    for level, said, targets in (
        ("task", output.task_logits, samples.tasks),
        ("group", output.group_logits, samples.groups),
    ):
        if said is not None:
            logits[level] = said, targets.repeat(2)
            terms[level] = classification(*logits[level])
    weights = {
        "image": objective.image_weight,
        "task": objective.task_weight,
        "group": objective.group_weight,
    }
    outputs = [x for x in (output.embedding, output.task_logits, output.group_logits) if x is not None]
    return StepLoss(_weighted(terms, weights), terms, outputs, embeddings, logits)


def _decoder_loss(
    samples: Samples,
    forward: Forward,
    temperature: Tensor,  # noqa: ARG001  (of the image level: the stages share one signature)
    config: PretrainConfig,
    dtype: torch.dtype,
) -> StepLoss:
    objective, patch_size = config.objective, config.sampling.patch_size
    views = two_views(samples.regions, samples.seeds, patch_size, config.views)
    target = views.second
    corrupted, mask = target, None
    if objective.restoration_weight:
        corrupted, mask = mask_blocks(target, samples.seeds, objective.mask_fraction)
    images = torch.cat((views.first, corrupted)) if objective.dense_weight else corrupted
    output = forward(images.to(dtype), "decoder")
    terms: dict[str, Tensor] = {}
    if output.dense is not None:
        points = matching_points(views, patch_size, objective.dense_points, samples.seeds)
        first, second = output.dense.chunk(2)
        terms["dense"] = dense_contrast(
            sample_points(first, points.first, patch_size),
            sample_points(second, points.second, patch_size),
            points.region,
            points.valid,
            objective.dense_temperature,
            objective.dense_distance,
        )
    if output.restored is not None and mask is not None:
        restored = output.restored[-target.shape[0] :]
        terms["restoration"] = restoration(restored, target.to(dtype), mask)
    weights = {"dense": objective.dense_weight, "restoration": objective.restoration_weight}
    outputs = [x for x in (output.dense, output.restored) if x is not None]
    return StepLoss(_weighted(terms, weights), terms, outputs)


_STAGES: dict[Stage, Callable[[Samples, Forward, Tensor, PretrainConfig, torch.dtype], StepLoss]] = {
    "encoder": _encoder_loss,
    "decoder": _decoder_loss,
}


def _weighted(terms: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def unit_embeddings(loss: StepLoss) -> tuple[Tensor, Tensor] | None:
    """The embeddings of both views at unit length, without a gradient."""
    if loss.embeddings is None:
        return None
    first, second = (F.normalize(embedding.detach().float(), dim=1) for embedding in loss.embeddings)
    return first, second
