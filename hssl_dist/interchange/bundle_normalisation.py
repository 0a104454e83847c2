"""Normalise an image as the network's training images were; needs torch and numpy alone.

`ct`: `(clip(x) - offset) / scale` with the numbers of the training data. `mr`: the same with numbers of each
image: mean and standard deviation of its tissue, clipped to ten of them. Tissue is what lies above a tenth of
the range between the 2nd and the 98th percentile; statistics use about 2^18 evenly spaced voxels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

SAMPLE_VOXELS = 1 << 18
CLIP_STD = 10.0


class Normaliser:
    """Normalises each channel of a `channel z y x` image by its rule, a mapping."""

    def __init__(self, channels: Sequence[Mapping[str, Any]]) -> None:
        self.channels = channels

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """The image in float32, of the same kind of tensor."""
        image = image.float()
        if len(image) != len(self.channels):
            raise ValueError(f"the image has {len(image)} channels, expected {len(self.channels)}")
        rules = [
            (rule["clip_low"], rule["clip_high"], rule["offset"], rule["scale"])
            if rule["rule"] == "ct"
            else tissue_rule(np.asarray(torch.as_tensor(channel)))
            for rule, channel in zip(self.channels, image, strict=True)
        ]
        low, high, offset, scale = torch.tensor(rules, dtype=torch.float32).T.reshape(4, -1, 1, 1, 1)
        normalised: torch.Tensor = (torch.minimum(torch.maximum(image, low), high) - offset) / scale
        return normalised


def tissue_rule(channel: np.ndarray[Any, Any]) -> tuple[float, float, float, float]:
    """Clip limits, offset and scale of a `z y x` channel from its own tissue."""
    step = max(1, -(-channel.size // SAMPLE_VOXELS))
    while math.gcd(step, channel.shape[1] * channel.shape[2]) > 1:
        step += 1
    sample = np.ascontiguousarray(channel).reshape(-1)[::step]
    dark, bright = np.percentile(sample, (2.0, 98.0))
    threshold = dark + 0.1 * (bright - dark)
    if channel.max() <= threshold:
        threshold = -np.inf
    inside = sample[sample > threshold].astype(np.float64)
    whole = sample.astype(np.float64)
    inside = inside if inside.size else whole
    clipped = np.clip(inside, *np.percentile(inside, (0.5, 99.5)))
    offset = float(clipped.mean())
    scale = float(clipped.std()) or float(inside.std()) or float(whole.std()) or 1.0
    return offset - CLIP_STD * scale, offset + CLIP_STD * scale, offset, scale
