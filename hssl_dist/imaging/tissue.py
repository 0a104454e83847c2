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
from jaxtyping import Bool, Shaped

from hssl_dist.imaging.sample import Sample, spaced_sample
from hssl_dist.imaging.slabs import slabs
from hssl_dist.records import Scaling, Shape, Volume

Mask = np.ndarray[Any, np.dtype[np.bool_]]

AIR_HU = -1000.0
"""CT below air is padding that scanners invent (-1024, -2000, -3024)."""

_LOW, _HIGH, _SHARE = 2.0, 98.0, 0.1


@dataclass(frozen=True, slots=True)
class Tissue:
    """What is known of a channel: `dark` is its 2nd percentile; tissue lies above `threshold`.

    `dark` and `threshold` are estimated from the sample; `minimum` and `maximum` are of all voxels.
    """

    sample: Sample
    minimum: float
    maximum: float
    dark: float
    threshold: float


def find_tissue(channel: Shaped[np.ndarray, "z y x"], scaling: Scaling, modality: str) -> Tissue:
    """The tissue of a channel; everything, if nothing would be brighter than the threshold.

    For CT nothing is darker than air. A volume that is empty but for less than 2 % has no robust range: what
    is above its background is tissue.
    """
    sample = spaced_sample(channel, scaling)
    minimum, maximum = value_range(channel, scaling)
    floor = AIR_HU if modality == "ct" else -np.inf
    low, high = (max(value, floor) for value in sample.percentiles((_LOW, _HIGH)))
    threshold = low + _SHARE * (high - low)
    is_exceeded = np.float32(maximum) > threshold
    return Tissue(sample, minimum, maximum, low, threshold if is_exceeded else -np.inf)


def value_range(numbers: Shaped[np.ndarray, "z y x"], scaling: Scaling) -> tuple[float, float]:
    """The lowest and the highest intensity; NaN if any is."""
    ends = np.array([(part.min(), part.max()) for part in (numbers[slab] for slab in slabs(numbers.shape))])
    low, high = (float(value) for value in scaling.values(np.array([ends.min(), ends.max()])))
    return (low, high) if scaling.scale_factor > 0 else (high, low)


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
    a prediction back is exact, and what lies outside is never interpolated.
    """
    boxes = [
        _box(channel, volume.scaling, tissue.threshold)
        for channel, tissue in zip(volume.image, tissues, strict=True)
    ]
    if volume.label is not None:
        boxes.append(_box(volume.label, Scaling(), 0.0))
    found = np.array([box for box in boxes if box is not None])
    start, stop = found[:, :, 0].min(axis=0), found[:, :, 1].max(axis=0)
    return cast("Shape", tuple(start.tolist())), cast("Shape", tuple(stop.tolist()))


def _box(
    numbers: Shaped[np.ndarray, "z y x"], scaling: Scaling, threshold: float
) -> list[tuple[int, int]] | None:
    """`(start, stop)` of each axis of the box around all above a threshold; None if nothing is.

    It grows from what one slice shows, so most of the volume is not looked at.
    """
    brightest = np.max if scaling.scale_factor > 0 else np.min

    def bright(part: Shaped[np.ndarray, "z y x"], axis: int) -> Bool[np.ndarray, " size"]:
        """Along an axis, where the part has any bright voxel."""
        others = tuple(other for other in range(3) if other != axis)
        return above(brightest(part, axis=others), scaling, threshold)

    depth = len(numbers)
    bottom = next((z for z in range(depth) if bright(numbers[z : z + 1], 0)), None)
    if bottom is None:
        return None
    top = 1 + next(z for z in reversed(range(depth)) if bright(numbers[z : z + 1], 0))
    middle = (bottom + top) // 2
    seed = numbers[middle : middle + 1]
    seed = seed if bright(seed, 0) else numbers[bottom : bottom + 1]
    box, inside = [(bottom, top)], numbers[bottom:top]
    for axis in (1, 2):
        start, stop = _extent(bright(seed, axis))
        before, _, after = np.split(inside, (start, stop), axis)
        if before.size and (line := bright(before, axis)).any():
            start = _extent(line)[0]
        if after.size and (line := bright(after, axis)).any():
            stop += _extent(line)[1]
        box.append((start, stop))
        inside = np.split(inside, (start, stop), axis)[1]
    return box


def foreground_kind(volume: Volume) -> Literal["label", "tissue"]:
    """Whether the volume has annotated voxels."""
    return "label" if volume.label is not None and volume.label.any() else "tissue"


def _extent(line: Bool[np.ndarray, " size"]) -> tuple[int, int]:
    return int(line.argmax()), int(line.size - line[::-1].argmax())
