"""Restoration: mean squared error on the voxels that were corrupted."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hssl_dist.losses.scaling import at_least_float32, scale_to_ranks


def restoration(
    restored: Float[Tensor, "b c z y x"],
    target: Float[Tensor, "b c z y x"],
    mask: Bool[Tensor, "b channel_or_1 z y x"],
) -> Float[Tensor, ""]:
    """The rank's share of the mean squared error over all ranks' masked voxels; 0 if nothing is masked."""
    error = at_least_float32(restored) - target
    mask = mask.expand_as(error)
    total = torch.where(mask, error, 0).square().sum()
    return scale_to_ranks(total, mask.sum())
