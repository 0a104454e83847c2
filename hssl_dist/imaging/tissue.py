"""What of a volume is tissue, and the box around it.

One rule serves cropping, statistics and sampling: a voxel is tissue if it lies above a tenth of the robust
range, `p2 + 0.1 (p98 - p2)` (the first threshold of Smith's brain extraction, Human Brain Mapping 2002). It
does not depend on unit or scale, so it holds for MR, for HU and for normalised voxels; zero padding, skull
stripping and the noise of air all fall below it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from jaxtyping import Bool, Float32, Shaped

from hssl_dist.records import Scaling, Shape, Volume

Mask = np.ndarray[Any, np.dtype[np.bool_]]

SAMPLE_VOXELS = 1 << 18
"""Statistics use about so many evenly spaced voxels: percentiles are then within 0.1 % of their rank."""

AIR_HU = -1000.0
"""CT below air is padding that scanners invent (-1024, -2000, -3024)."""

_LOW, _HIGH, _SHARE = 2.0, 98.0, 0.1


def spaced_sample(channel: Shaped[np.ndarray, "z y x"], scaling: Scaling) -> Float32[np.ndarray, " voxels"]:
    """Intensities of at most about `SAMPLE_VOXELS` evenly spaced voxels of a contiguous channel.

    The step is coprime to the size of a row and of a slice, so no column is preferred.
    """
    step = max(1, -(-channel.size // SAMPLE_VOXELS))
    while math.gcd(step, channel.shape[1] * channel.shape[2]) > 1:
        step += 1
    return scaling.values(channel.reshape(-1)[::step])


@dataclass(frozen=True, slots=True)
class Tissue:
    """What a sample says of a channel: `dark` is its 2nd percentile; tissue lies above `threshold`."""

    sample: Float32[np.ndarray, " voxels"]
    dark: float
    threshold: float


def find_tissue(channel: Shaped[np.ndarray, "z y x"], scaling: Scaling, modality: str) -> Tissue:
    """The tissue of a channel; everything, if nothing would be brighter than the threshold.

    For CT nothing is darker than air. A volume that is empty but for less than 2 % has no robust range: what
    is above its background is tissue.
    """
    sample = spaced_sample(channel, scaling)
    floor = AIR_HU if modality == "ct" else -np.inf
    low, high = (max(float(value), floor) for value in np.percentile(sample, (_LOW, _HIGH)))
    threshold = low + _SHARE * (high - low)
    brightest = channel.max() if scaling.scale_factor > 0 else channel.min()
    return Tissue(sample, low, threshold if scaling.values(brightest) > threshold else -np.inf)


def above(
    numbers: Shaped[np.ndarray, "*shape"], scaling: Scaling, threshold: float
) -> Bool[np.ndarray, "*shape"]:
    """Which voxels are brighter than a threshold. Whole numbers are compared as such: it is faster."""
    if numbers.dtype.kind == "f" or scaling.scale_factor <= 0 or not math.isfinite(threshold):
        return cast("Mask", scaling.values(numbers) > threshold)
    bounds = np.iinfo(numbers.dtype)
    bound = math.floor((threshold - scaling.add_offset) / scaling.scale_factor)
    if not bounds.min <= bound <= bounds.max:
        return np.full(numbers.shape, bound < bounds.min)
    return cast("Mask", numbers > numbers.dtype.type(bound))


def foreground_box(volume: Volume, tissues: Sequence[Tissue]) -> tuple[Shape, Shape]:
    """`(start, stop)` of the smallest box that holds the tissue of every channel and every labelled voxel.

    It is found on the oriented grid, before resampling: its bounds are whole voxels of the source, so putting
    a prediction back is exact, and what lies outside is never interpolated. Works slice by slice.
    """
    lines = [np.zeros(size, dtype=bool) for size in volume.geometry.shape]
    for z in range(volume.geometry.shape[0]):
        masks = [
            above(channel[z], volume.scaling, tissue.threshold)
            for channel, tissue in zip(volume.image, tissues, strict=True)
        ]
        if volume.label is not None:
            masks.append(volume.label[z] > 0)
        for mask in masks:
            down = mask.any(axis=1)
            lines[0][z] |= down.any()
            lines[1] |= down
            lines[2] |= mask.any(axis=0)
    extents = [_extent(line) for line in lines]
    start, stop = zip(*extents, strict=True)
    return start, stop


def foreground_kind(volume: Volume) -> Literal["label", "tissue"]:
    """Whether the volume has annotated voxels."""
    return "label" if volume.label is not None and volume.label.any() else "tissue"


def _extent(line: Bool[np.ndarray, " size"]) -> tuple[int, int]:
    return int(line.argmax()), int(line.size - line[::-1].argmax())
