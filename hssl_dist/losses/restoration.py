"""Restoration: mean squared error on the voxels that are to be restored."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from hssl_dist.losses.scaling import at_least_float32, scale_to_ranks, scale_to_total


def restoration(
    restored: Float[Tensor, "b c z y x"],
    target: Float[Tensor, "b c z y x"],
    mask: Bool[Tensor, "b channel_or_1 z y x"],
    *,
    counted: Num[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """The rank's share of the mean squared error over all ranks' masked voxels; 0 if nothing is masked.

    `counted`, the sum over all ranks of `restored_voxels`, may be given: then ranks exchange nothing.
    """
    error = at_least_float32(restored) - target
    mask = mask.expand_as(error)
    total = torch.where(mask, error, 0).square().sum()
    return scale_to_ranks(total, mask.sum()) if counted is None else scale_to_total(total, counted)


def restored_voxels(
    target: Float[Tensor, "b c z y x"], mask: Bool[Tensor, "b channel_or_1 z y x"]
) -> Num[Tensor, ""]:
    """The voxels that the loss counts, over channels, on this rank."""
    return mask.expand_as(target).sum()
