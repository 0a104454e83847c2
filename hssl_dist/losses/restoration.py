"""Restoration: mean squared error on the voxels that are to be restored.

The target is each image at its own mean and deviation. A network of instance norms does not see an image's
level and contrast, so it could not restore them; and without this the datasets with the widest intensities
(the air around a CT's organs) would make up most of the loss.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from hssl_dist.losses.scaling import at_least_float32, scale_to_ranks, scale_to_total

_LEAST_STD = 1e-3  # of stored intensities, whose own is 1


def restoration_target(images: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b c z y x"]:
    """Each channel of each image at mean 0 and standard deviation 1; one that is constant becomes 0."""
    images = at_least_float32(images)
    std, mean = torch.std_mean(images, dim=(2, 3, 4), correction=0, keepdim=True)
    return (images - mean) / std.clamp_min(_LEAST_STD)


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
