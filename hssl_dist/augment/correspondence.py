"""Voxels of two views that show the same place, and features at such places."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from hssl_dist.augment.affine import apply_maps, invert_maps
from hssl_dist.augment.seeds import stream
from hssl_dist.augment.views import Views
from hssl_dist.records import Shape

_CANDIDATES = 8  # candidates drawn for each point asked for


@dataclass(frozen=True, slots=True)
class Points:
    """The same places in both views and in the region, each in that grid's voxels `z y x`.

    Where `valid` is false a sample had too few common voxels, and the point must not be used.
    """

    first: Float[Tensor, "batch points 3"]
    second: Float[Tensor, "batch points 3"]
    region: Float[Tensor, "batch points 3"]
    valid: Bool[Tensor, "batch points"]


@torch.no_grad()
def matching_points(views: Views, patch_size: Shape, points: int, seeds: Sequence[int]) -> Points:
    """`points` random voxels of the first view that lie inside the second view and inside the region."""
    voxels = math.prod(patch_size)
    count = min(_CANDIDATES * points, voxels)
    drawn = np.stack([stream(seed, "points").choice(voxels, count, replace=False) for seed in seeds])
    places = np.stack(np.unravel_index(drawn, patch_size), axis=2)
    first = torch.as_tensor(places, dtype=torch.float32).to(views.first.device, non_blocking=True)
    region = apply_maps(views.first_to_region, first)
    second = apply_maps(invert_maps(views.second_to_region), region)
    valid = _inside(second, patch_size) & _inside(region, views.region_size)
    chosen = torch.argsort(valid, dim=1, descending=True, stable=True)[:, :points]
    missing = points - chosen.shape[1]
    valid = F.pad(valid.gather(1, chosen), (0, missing))
    first, second, region = (
        F.pad(x.gather(1, chosen[:, :, None].expand(-1, -1, 3)), (0, 0, 0, missing))
        for x in (first, second, region)
    )
    return Points(first, second, region, valid)


def sample_points(
    features: Float[Tensor, "batch d z y x"], points: Float[Tensor, "batch points 3"], patch_size: Shape
) -> Float[Tensor, "batch points d"]:
    """Features at places given in voxels of the full-resolution patch, by trilinear interpolation.

    The features may be coarser than the patch: their cells tile it. Beyond the outermost cell's centre its
    value goes on.
    """
    size = _size(patch_size, points)
    grid = ((2.0 * points + 1.0) / size - 1.0).flip(-1)[:, :, None, None]
    dtype = torch.promote_types(features.dtype, torch.float32)  # half precision would misplace the points
    sampled = F.grid_sample(features.to(dtype), grid.to(dtype), padding_mode="border", align_corners=False)
    return sampled[:, :, :, 0, 0].transpose(1, 2)


def _inside(points: Float[Tensor, "batch points 3"], size: Shape) -> Bool[Tensor, "batch points"]:
    return ((points >= 0.0) & (points <= _size(size, points) - 1.0)).all(2)


def _size(size: Shape, like: Tensor) -> Float[Tensor, " 3"]:
    return torch.tensor(size, dtype=like.dtype).to(like.device, non_blocking=True)
