"""What of a volume is tissue, and the box around it.

One rule serves cropping, statistics and sampling: a voxel is tissue if it lies above a tenth of the robust
range, `p2 + 0.1 (p98 - p2)` (the first threshold of Smith's brain extraction, Human Brain Mapping 2002). It
does not depend on unit or scale, so it holds for MR, for HU and for normalised voxels; zero padding, skull
stripping and the noise of air all fall below it.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32

from hssl_dist.records import Shape, Volume

SAMPLE_VOXELS = 1 << 18
"""Statistics use about so many evenly spaced voxels: percentiles are then within 0.1 % of their rank."""

AIR_HU = -1000.0
"""CT below air is padding that scanners invent (-1024, -2000, -3024)."""

_LOW, _HIGH, _SHARE = 2.0, 98.0, 0.1


def spaced_sample(channel: Float32[np.ndarray, "z y x"]) -> Float32[np.ndarray, " voxels"]:
    """At most about `SAMPLE_VOXELS` evenly spaced voxels of a contiguous channel.

    The step is coprime to the size of a row and of a slice, so no column is preferred.
    """
    step = max(1, -(-channel.size // SAMPLE_VOXELS))
    while math.gcd(step, channel.shape[1] * channel.shape[2]) > 1:
        step += 1
    return channel.reshape(-1)[::step]


def robust_range(sample: Float32[np.ndarray, " voxels"], modality: str) -> tuple[float, float]:
    """The 2nd and 98th percentile; for CT nothing is darker than air."""
    floor = AIR_HU if modality == "ct" else -np.inf
    low, high = np.percentile(sample, (_LOW, _HIGH))
    return max(float(low), floor), max(float(high), floor)


def tissue_threshold(channel: Float32[np.ndarray, "z y x"], modality: str) -> float:
    """The intensity above which a voxel is tissue; minus infinity if no voxel would be.

    A volume that is empty but for less than 2 % has no robust range: what is above its background is tissue.
    """
    low, high = robust_range(spaced_sample(channel), modality)
    threshold = low + _SHARE * (high - low)
    return threshold if channel.max() > threshold else -np.inf


def foreground_box(volume: Volume) -> tuple[Shape, Shape]:
    """`(start, stop)` of the smallest box that holds the tissue of every channel and every labelled voxel.

    It is found on the oriented grid, before resampling: its bounds are whole voxels of the source, so putting
    a prediction back is exact, and what lies outside is never interpolated.
    """
    mask: Bool[np.ndarray, "z y x"] = np.zeros(volume.geometry.shape, dtype=bool)
    for channel, modality in zip(volume.image, volume.modalities, strict=True):
        mask |= channel > tissue_threshold(channel, modality)
    if volume.label is not None:
        mask |= volume.label > 0
    z, y, x = (_extent(np.any(mask, axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    return (z[0], y[0], x[0]), (z[1], y[1], x[1])


def foreground_kind(volume: Volume) -> Literal["label", "tissue"]:
    """Whether the volume has annotated voxels."""
    return "label" if volume.label is not None and volume.label.any() else "tissue"


def _extent(line: Bool[np.ndarray, " size"]) -> tuple[int, int]:
    return int(line.argmax()), int(line.size - line[::-1].argmax())
