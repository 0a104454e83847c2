"""Corrupting an image that a network then restores."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hssl_dist.augment.seeds import normals, stream

_BLOCKS_PER_AXIS = 6


@torch.no_grad()
def mask_blocks(
    images: Float[Tensor, "batch channel z y x"], seeds: Sequence[int], fraction: float, noise: float = 0.1
) -> tuple[Float[Tensor, "batch channel z y x"], Bool[Tensor, "batch 1 z y x"]]:
    """Images with about `fraction` of their voxels replaced, and the mask of the replaced ones.

    Whole blocks of a randomly placed grid (6 blocks along each axis, so blocks are as anisotropic as the
    image) are replaced by noise of the image's mean and standard deviation; to the rest noise
    of `noise` times the image's standard deviation is added.
    """
    mask = _block_mask(tuple(images.shape[2:]), seeds, fraction).to(images.device, non_blocking=True)
    std, mean = torch.std_mean(images, dim=(2, 3, 4), keepdim=True, correction=0)
    drawn = std * normals(seeds, "corruption/noise", tuple(images.shape[1:]), images.device)
    return torch.where(mask, mean + drawn, images + noise * drawn), mask


def _block_mask(
    size: tuple[int, ...], seeds: Sequence[int], fraction: float
) -> Bool[Tensor, "batch 1 z y x"]:
    """Blocks chosen from a grid that is shifted cyclically, so that no border between blocks is special."""
    edges = [math.ceil(length / _BLOCKS_PER_AXIS) for length in size]
    counts = [math.ceil(length / edge) for length, edge in zip(size, edges, strict=True)]
    chosen = round(fraction * math.prod(counts))
    masks = np.zeros((len(seeds), 1, *size), dtype=bool)
    for mask, seed in zip(masks, seeds, strict=True):
        rng = stream(seed, "corruption/blocks")
        blocks = np.zeros(math.prod(counts), dtype=bool)
        blocks[rng.permutation(len(blocks))[:chosen]] = True
        offsets = rng.integers(size)
        places = [
            (np.arange(length) + offset) % length // edge
            for length, offset, edge in zip(size, offsets, edges, strict=True)
        ]
        mask[0] = blocks.reshape(counts)[np.ix_(*places)]
    return torch.from_numpy(masks)
