"""Supervised segmentation: cross-entropy plus soft Dice, with deep supervision.

    loss = cross-entropy + 1 - mean over foreground classes k of (2 I_k + eps) / (P_k + T_k + eps)

with I the overlap of softmax probabilities and one-hot labels, P and T their volumes, all summed over the
whole batch (a class that is missing from one patch is then no special case). Deep supervision takes the mean
over resolutions with weights 1, 1/2, 1/4, ... from the finest on; labels are taken at the voxel nearest to
the centre of each coarser one.
These are the values of this process's batch; nothing is exchanged between ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from hssl_dist.losses.scaling import at_least_float32

if TYPE_CHECKING:
    from collections.abc import Sequence

DICE_EPSILON = 1e-5


def dice_cross_entropy(
    logits: Float[Tensor, "b classes z y x"] | Sequence[Tensor], label: Integer[Tensor, "b z y x"]
) -> Float[Tensor, ""]:
    """The loss above for logits at full size, or for a list of them, finest first.

    Raises ValueError if the label's size is no multiple of that of some logits.
    """
    scales = [logits] if isinstance(logits, Tensor) else list(logits)
    weights = [0.5**level for level in range(len(scales))]
    terms = [
        weight * _single_scale(at_least_float32(scale), _coarser(label, scale.shape[2:]))
        for weight, scale in zip(weights, scales, strict=True)
    ]
    return torch.stack(terms).sum() / sum(weights)


def _coarser(label: Tensor, size: torch.Size) -> Tensor:
    """A view of the label at every n-th voxel: the middle one, of an even number the one after it."""
    if any(full % coarse for full, coarse in zip(label.shape[1:], size, strict=True)):
        raise ValueError(
            f"a label of {tuple(label.shape[1:])} has no logits of {tuple(size)}; give a divisor"
        )
    steps = [full // coarse for full, coarse in zip(label.shape[1:], size, strict=True)]
    z, y, x = (slice(step // 2, None, step) for step in steps)
    return label[:, z, y, x]


def _single_scale(logits: Tensor, label: Tensor) -> Tensor:
    with torch.autocast(logits.device.type, enabled=False):
        log_probability = logits.log_softmax(dim=1)
        cross_entropy = F.nll_loss(log_probability, label.long())
        probability = log_probability[:, 1:].exp()
        classes = torch.arange(1, logits.shape[1], device=label.device, dtype=label.dtype)
        truth = label[:, None] == classes.view(1, -1, 1, 1, 1)
        dims = (0, 2, 3, 4)
        overlap = (probability * truth).sum(dims)
        volume = probability.sum(dims) + truth.sum(dims)
        dice = (2 * overlap + DICE_EPSILON) / (volume + DICE_EPSILON)
        return cross_entropy + 1 - dice.mean()
