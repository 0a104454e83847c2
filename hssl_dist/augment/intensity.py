"""Random changes of intensity: blur and low resolution, contrast, brightness, gamma, noise.

Images are standardised (a brightness of 1 is one standard deviation of the volume). One row of `images` is
one channel of one sample, with a seed of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from hssl_dist.augment.affine import anisotropy
from hssl_dist.augment.seeds import normals, uniforms
from hssl_dist.config.pretrain import ViewConfig

_DRAWS = 12
_BLUR_SIGMA = (0.4, 1.2)  # voxels of the plane
_ZOOM = (0.5, 1.0)  # size of the simulated coarse grid, relative


def adjust_intensity(
    images: Float[Tensor, "batch z y x"],
    seeds: Sequence[int],
    purpose: str,
    config: ViewConfig,
    probability: float = 1.0,
) -> Float[Tensor, "batch z y x"]:
    """New images; contrast, brightness, gamma and noise each happen with `probability`."""
    draws = uniforms(seeds, purpose, _DRAWS)
    images = _soften(images, draws, config)
    images = _tone(images, draws, config, probability)
    sigma = config.noise * draws[:, 4] * (draws[:, 5] < probability)
    if not sigma.any():
        return images
    noise = normals(seeds, purpose, tuple(images.shape[1:]), images.device)
    return images.addcmul_(noise, _column(sigma, images))


def _tone(
    images: Float[Tensor, "batch z y x"],
    draws: Float64[np.ndarray, "batch draws"],
    config: ViewConfig,
    probability: float,
) -> Float[Tensor, "batch z y x"]:
    """Contrast about the image's mean, brightness, and gamma between the image's extremes, in one pass."""
    ranges = np.asarray((config.contrast, config.brightness, config.gamma))
    contrast, brightness, log_gamma = ((2 * draws[:, :3] - 1) * ranges * (draws[:, 6:9] < probability)).T
    mean = images.mean((1, 2, 3), keepdim=True)
    low = images.amin((1, 2, 3), keepdim=True)
    extent = (images.amax((1, 2, 3), keepdim=True) - low).clamp_min_(1e-6)
    factor = _column(1.0 + contrast, images)
    images = ((images - low) / extent).pow_(_column(np.exp(log_gamma), images))
    shift = factor * (low - mean) + mean + _column(brightness, images)
    return images.mul_(factor * extent).add_(shift)


def _soften(
    images: Float[Tensor, "batch z y x"], draws: Float64[np.ndarray, "batch draws"], config: ViewConfig
) -> Float[Tensor, "batch z y x"]:
    """Blur and coarsen the images drawn for it; both are linear along each axis, so they are one matrix each.

    Lengths are those of the plane; along z they are divided by the slice's thickness, so thick slices are
    left almost as they are.
    """
    blurred, coarsened = draws[:, 9] < config.blur, draws[:, 10] < config.low_resolution
    chosen = np.flatnonzero(blurred | coarsened)
    if not len(chosen):
        return images
    sigma = np.where(blurred, _between(_BLUR_SIGMA, draws[:, 3]), 0.0)[chosen]
    zoom = np.where(coarsened, _between(_ZOOM, draws[:, 11]), 1.0)[chosen]
    rows = torch.as_tensor(chosen).to(images.device, non_blocking=True)
    soft = images[rows]
    thickness = anisotropy((soft.shape[1], soft.shape[2], soft.shape[3]))
    with torch.autocast(images.device.type, enabled=False):
        for axis, length in ((1, thickness), (2, 1.0), (3, 1.0)):
            size = soft.shape[axis]
            coarse = np.maximum(np.rint(size * np.minimum(1.0, zoom * length)), 1.0)
            blurring = _blurring(size, _column(sigma / length, soft))
            soft = _along(axis, _coarsening(size, _column(coarse, soft)) @ blurring, soft)
    return images.index_copy(0, rows, soft)


def _along(
    axis: int, operator: Float[Tensor, "batch n n"], images: Float[Tensor, "batch z y x"]
) -> Float[Tensor, "batch z y x"]:
    if axis == 3:
        return (images.flatten(1, 2) @ operator.transpose(1, 2)).view_as(images)
    if axis == 2:
        return operator[:, None] @ images
    return (operator @ images.flatten(2)).view_as(images)


def _blurring(size: int, sigma: Float[Tensor, "batch 1 1 1"]) -> Float[Tensor, "batch n n"]:
    """Gaussian averaging, its weights renormalised at the borders."""
    places = torch.arange(size, device=sigma.device, dtype=sigma.dtype)
    distance = (places[:, None] - places) / sigma[..., 0].clamp_min(1e-3)
    weights = torch.exp(-0.5 * distance.square())
    return weights / weights.sum(2, keepdim=True)


def _coarsening(size: int, coarse: Float[Tensor, "batch 1 1 1"]) -> Float[Tensor, "batch n n"]:
    """Averaging into `coarse` <= `size` equal cells, then linear interpolation back to `size` voxels."""
    places = torch.arange(size, device=coarse.device, dtype=coarse.dtype)
    coarse = coarse[..., 0]
    ratio = coarse / size
    low, high = places * ratio, (places + 1) * ratio  # of each voxel, in cells
    cells = places[:, None]
    average = (torch.minimum(high, cells + 1) - torch.maximum(low, cells)).clamp_min_(0.0)
    centres = ((places[:, None] + 0.5) * ratio - 0.5).clamp_min(0.0).minimum(coarse - 1)
    interpolate = (1.0 - (centres - places).abs()).clamp_min_(0.0)
    return interpolate @ average


def _between(
    bounds: tuple[float, float], draws: Float64[np.ndarray, " batch"]
) -> Float64[np.ndarray, " batch"]:
    return bounds[0] + (bounds[1] - bounds[0]) * draws


def _column(values: Float64[np.ndarray, " batch"], like: Tensor) -> Float[Tensor, "batch 1 1 1"]:
    return torch.as_tensor(values, dtype=like.dtype).to(like.device, non_blocking=True).view(-1, 1, 1, 1)
