"""Two views of each region, and the exact maps from their voxels to the region's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hssl_dist.augment.affine import DRAWS, draw_maps, resample
from hssl_dist.augment.intensity import adjust_intensity
from hssl_dist.augment.seeds import uniforms
from hssl_dist.config.pretrain import ViewConfig
from hssl_dist.records import Shape


@dataclass(frozen=True, slots=True)
class Views:
    """Two views of each region of a batch.

    The maps take voxel `z y x` of a view to its place in the region, in voxels:
    `map[:, :3] @ voxel + map[:, 3]`.
    """

    first: Float[Tensor, "batch 1 z y x"]
    second: Float[Tensor, "batch 1 z y x"]
    first_to_region: Float[Tensor, "batch 3 4"]
    second_to_region: Float[Tensor, "batch 3 4"]
    region_size: Shape


@torch.no_grad()
def two_views(
    regions: Float[Tensor, "batch 1 z y x"], seeds: Sequence[int], patch_size: Shape, config: ViewConfig
) -> Views:
    """Two random views of `patch_size` of each region, on the regions' device, from each sample's seed alone.

    Each view is cropped, flipped, turned and scaled in one trilinear interpolation, then changed in
    intensity. The centres of two views lie at most half a patch apart on each axis.
    """
    region_size: Shape = (regions.shape[2], regions.shape[3], regions.shape[4])
    views, maps = [], []
    for purpose in ("view/first", "view/second"):
        drawn = draw_maps(uniforms(seeds, f"{purpose}/map", DRAWS), config, region_size, patch_size)
        view = resample(regions, drawn, patch_size)
        views.append(adjust_intensity(view[:, 0], seeds, f"{purpose}/intensity", config)[:, None])
        maps.append(torch.as_tensor(drawn, dtype=torch.float32).to(regions.device, non_blocking=True))
    return Views(views[0], views[1], maps[0], maps[1], region_size)
