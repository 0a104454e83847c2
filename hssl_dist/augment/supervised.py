"""Augmentation of labelled patches: image and label turned alike, then the image's intensity changed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from hssl_dist.augment.affine import DRAWS, draw_maps, resample
from hssl_dist.augment.intensity import adjust_intensity
from hssl_dist.augment.seeds import uniforms
from hssl_dist.config.finetune import AugmentationConfig
from hssl_dist.records import Shape


@torch.no_grad()
def augment_labelled(
    image: Float[Tensor, "batch channel z y x"],
    label: Integer[Tensor, "batch z y x"],
    seeds: Sequence[int],
    config: AugmentationConfig,
) -> tuple[Float[Tensor, "batch channel z y x"], Integer[Tensor, "batch z y x"]]:
    """New patches of the same size, each from its own seed alone; labels keep their values and their type.

    Images are interpolated linearly and labels take the nearest voxel of the same grid. Channels share the
    geometry; each has its own change of intensity.
    """
    size: Shape = (image.shape[2], image.shape[3], image.shape[4])
    draws = uniforms(seeds, "labelled/map", DRAWS)
    maps = draw_maps(draws, config, size, size, config.probability, config.flip_axes)
    image = resample(image, maps, size)
    turned = resample(label[:, None].to(image.dtype), maps, size, mode="nearest")[:, 0]
    channels = [
        adjust_intensity(image[:, c], seeds, f"labelled/intensity/{c}", config, config.probability)
        for c in range(image.shape[1])
    ]
    return torch.stack(channels, dim=1), turned.to(label.dtype)
