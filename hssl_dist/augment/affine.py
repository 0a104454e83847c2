"""Affine maps between voxel grids, and resampling along them.

A map takes voxel `z y x` of the target grid (a view) to a place in the source grid (a region), in voxels
whose centres have integer coordinates. Rotations out of the plane account for thick slices: a patch of
(16, 48, 48) is taken to have voxels three times as long in z as in the plane, as its shape suggests.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from hssl_dist.config.pretrain import ViewConfig
from hssl_dist.records import Shape

Maps = Float64[np.ndarray, "batch 3 4"]

DRAWS = 12
"""Uniform numbers that one map is made from."""

_TILT = 0.25  # rotations out of the plane, as a share of the rotation in it
_MAX_SHIFT = 0.25  # of the target's size: two views lie at most half a patch apart on each axis


def anisotropy(size: Shape) -> float:
    """Length of a voxel along z in voxels of the plane, judged by the shape of a patch; at least 1."""
    return max(1.0, min(size[1], size[2]) / size[0])


def draw_maps(
    draws: Float64[np.ndarray, "batch draws"],
    config: ViewConfig,
    source: Shape,
    target: Shape,
    probability: float = 1.0,
    flip_axes: tuple[bool, bool, bool] = (True, True, True),
) -> Maps:
    """A random flip, rotation, scaling and shift for each row of `draws` (numbers in [0, 1)).

    Rotation and scaling each happen with `probability`; only `flip_axes` (z y x) are flipped. The shift keeps
    the turned target inside the source where that is possible, but always uses at least half of the source's
    margin.
    """
    signed = 2.0 * draws - 1.0
    linear = np.where(draws[:, 0:3] < np.where(flip_axes, config.flip, 0.0), -1.0, 1.0)[:, None, :] * np.eye(
        3
    )
    turned = np.where(draws[:, 10] < probability, config.rotation_rad, 0.0)[:, None]
    linear = _rotations(signed[:, 3:6] * turned * (1.0, _TILT, _TILT), anisotropy(target)) @ linear
    scaled = np.where(draws[:, 11] < probability, np.log1p(config.scale), 0.0)
    linear = linear * np.exp(signed[:, 6] * scaled)[:, None, None]

    source_size, target_size = np.asarray(source, float), np.asarray(target, float)
    margin = np.maximum(source_size - target_size, 0.0) / 2.0
    room = source_size / 2.0 - (np.abs(linear) @ (target_size / 2.0))
    reach = np.minimum(np.clip(room, margin / 2.0, margin), _MAX_SHIFT * target_size)
    centre = (source_size - 1.0) / 2.0 + signed[:, 7:10] * reach
    offset = centre - linear @ ((target_size - 1.0) / 2.0)
    return np.concatenate([linear, offset[:, :, None]], axis=2)


def apply_maps(
    maps: Float[Tensor, "batch 3 4"], points: Float[Tensor, "batch points 3"]
) -> Float[Tensor, "batch points 3"]:
    """Where the maps take the points."""
    # A sum and no matrix product, which may round coordinates to TF32 or, under autocast, to half precision.
    return (points[:, :, None, :] * maps[:, None, :, :3]).sum(3) + maps[:, None, :, 3]


def invert_maps(maps: Float[Tensor, "batch 3 4"]) -> Float[Tensor, "batch 3 4"]:
    """The maps from source to target."""
    linear = torch.linalg.inv_ex(maps[:, :, :3]).inverse  # `inv` would wait to see that there is one
    offset = -(linear * maps[:, None, :, 3]).sum(2, keepdim=True)
    return torch.cat([linear, offset], dim=2)


def resample(
    images: Float[Tensor, "batch channel z y x"],
    maps: Maps,
    size: Shape,
    mode: Literal["bilinear", "nearest"] = "bilinear",
) -> Float[Tensor, "batch channel z2 y2 x2"]:
    """The target grid's values; beyond the source's border its outermost voxels go on.

    `bilinear` is torch's name; in three dimensions it is trilinear.
    """
    theta = torch.as_tensor(_normalised(maps, images.shape[2:], size), dtype=images.dtype)
    grid = _grid(theta.to(images.device, non_blocking=True), size)
    return F.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=False)


def _grid(theta: Float[Tensor, "batch 3 4"], size: Shape) -> Float[Tensor, "batch z y x 3"]:
    """Where all voxels of the target lie, in torch's coordinates; sums, for the reason in `apply_maps`."""
    grid = theta[:, None, None, None, :, 3]
    for column, axis in enumerate((3, 2, 1)):
        length = size[axis - 1]
        places = (2.0 * torch.arange(length, device=theta.device, dtype=theta.dtype) + 1.0) / length - 1.0
        shape = [1] * 5
        shape[axis] = length
        grid = grid + theta[:, None, None, None, :, column] * places.view(shape)
    return grid


def _rotations(angles: Float64[np.ndarray, "batch 3"], thickness: float) -> Float64[np.ndarray, "batch 3 3"]:
    """Rotations by angles (rad) about x, then y, then z, for voxels `thickness` times longer in z."""
    product = np.broadcast_to(np.eye(3), (len(angles), 3, 3))
    for axis, (first, second) in enumerate(((1, 2), (0, 2), (0, 1))):
        turn = np.tile(np.eye(3), (len(angles), 1, 1))
        turn[:, first, first] = turn[:, second, second] = np.cos(angles[:, axis])
        turn[:, second, first] = np.sin(angles[:, axis])
        turn[:, first, second] = -turn[:, second, first]
        product = product @ turn
    lengths = np.asarray((thickness, 1.0, 1.0))
    turned: Float64[np.ndarray, "batch 3 3"] = product * lengths / lengths[:, None]
    return turned


def _normalised(maps: Maps, source: tuple[int, ...], target: Shape) -> Float64[np.ndarray, "batch 3 4"]:
    """The maps in torch's coordinates: x y z, and -1 .. 1 from border to border."""
    source_size, target_size = np.asarray(source, float), np.asarray(target, float)
    linear = maps[:, :, :3] * target_size / source_size[:, None]
    start = maps[:, :, :3] @ ((target_size - 1.0) / 2.0) + maps[:, :, 3]
    offset = (2.0 * start + 1.0) / source_size - 1.0
    return np.concatenate([linear[:, ::-1, ::-1], offset[:, ::-1, None]], axis=2)
