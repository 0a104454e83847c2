"""From a loaded volume to the stored one: crop, normalise, resample."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Shaped

from hssl_dist.errors import InputError
from hssl_dist.imaging.recipe import ChannelRecipe, Recipe
from hssl_dist.imaging.resampling import Kernel, resample_image, resample_label, resampled_grid
from hssl_dist.imaging.tissue import Tissue, find_tissue, foreground_box, value_range
from hssl_dist.records import Intensity, Scaling, Shape, Triple, Volume

MAX_GROWTH = 64
"""Resampling may multiply a volume's voxels by this; more means that a header's spacing is wrong."""

MR_CLIP_STD = 10.0
"""MR is clipped so many standard deviations from the mean: beyond any anatomy, but a spike is bounded."""


Rounding = Callable[[float], tuple[np.dtype[Any], Scaling]]
"""The numbers in which values up to a limit are to be held."""


def unrounded(limit: float) -> tuple[np.dtype[Any], Scaling]:  # noqa: ARG001
    """Values as they are, in float32."""
    return np.dtype(np.float32), Scaling()


def prepare(
    volume: Volume,
    recipe: Recipe,
    rounding: Rounding = unrounded,
    kernels: tuple[Kernel, Kernel, Kernel] | None = None,
) -> tuple[Volume, tuple[Intensity, ...]]:
    """Crop to the foreground, normalise every channel and resample to the recipe's spacing.

    `volume` comes from `load_case` and is left as it is. Returns the volume to store, its image in the
    numbers of `rounding`, and, per channel, its intensities before and after. `kernels` are the image's, if
    not those that suit the spacings. The same input gives the same bytes, in any process. Besides the loaded
    volume and the result it holds a few slabs of slices. Raises InputError if the spacing would blow the
    volume up.
    """
    tissues = [
        find_tissue(channel, volume.scaling, modality)
        for channel, modality in zip(volume.image, volume.modalities, strict=True)
    ]
    start, stop = foreground_box(volume, tissues)
    size: Shape = (stop[0] - start[0], stop[1] - start[1], stop[2] - start[2])
    shape, spacing_mm = resampled_grid(size, volume.spacing_mm, recipe.spacing_mm)
    _check_growth(size, shape, volume.spacing_mm, recipe.spacing_mm)
    box = tuple(slice(low, high) for low, high in zip(start, stop, strict=True))

    intensities = tuple(
        _intensity(tissue, rule) for tissue, rule in zip(tissues, recipe.channels, strict=True)
    )
    crops = [
        _Crop(channel[box], volume.scaling, intensity)
        for channel, intensity in zip(volume.image, intensities, strict=True)
    ]
    dtype, scaling = rounding(max(abs(value) for crop in crops for value in crop.range))
    image = np.empty((len(crops), *shape), dtype=dtype)
    for channel, crop in zip(image, crops, strict=True):
        z = 0
        for slab in resample_image(crop.planes, size, volume.spacing_mm, shape, spacing_mm, kernels):
            np.clip(slab, *crop.range, out=slab)
            scaling.round_into(channel[z : z + len(slab)], slab)
            z += len(slab)
    label = volume.label
    if label is not None:
        label = resample_label(label[box], volume.spacing_mm, shape, spacing_mm)
    geometry = volume.geometry.model_copy(
        update={"crop_start": start, "crop_stop": stop, "shape": shape, "spacing_mm": spacing_mm}
    )
    return Volume(image, label, spacing_mm, volume.modalities, geometry, scaling), intensities


def _check_growth(size: Shape, shape: Shape, spacing_mm: Triple, target_mm: Triple) -> None:
    if math.prod(shape) > MAX_GROWTH * math.prod(size):
        raise InputError(
            f"resampling from {spacing_mm} to {target_mm} mm would turn {size} voxels into {shape}; "
            "the spacing in the file's header cannot be right"
        )


def _intensity(tissue: Tissue, rule: ChannelRecipe) -> Intensity:
    """A channel's statistics over its tissue, and how it is normalised.

    `background` is the 2nd percentile of the volume: air, wherever there is any.
    """
    sample = tissue.sample.values
    inside = sample[sample > tissue.threshold]
    inside = (inside if inside.size else sample).astype(np.float64)
    low, high = tissue.sample.percentiles((0.5, 99.5), sample.size - inside.size, np.float64)
    if rule.rule == "ct":
        clip_low, clip_high, offset, scale = rule.clip_low, rule.clip_high, rule.offset, rule.scale
    else:
        offset, scale = _robust_moments(inside, low, high, sample)
        clip_low, clip_high = offset - MR_CLIP_STD * scale, offset + MR_CLIP_STD * scale
    if clip_low is None or clip_high is None or offset is None or scale is None:
        raise ValueError(f"a recipe of rule {rule.rule!r} needs its four numbers; got {rule}")
    return Intensity(
        minimum=tissue.minimum,
        maximum=tissue.maximum,
        mean=float(inside.mean()),
        std=float(inside.std()),
        percentile_00_5=low,
        percentile_99_5=high,
        clip_low=clip_low,
        clip_high=clip_high,
        offset=offset,
        scale=scale,
        background=float((np.clip(tissue.dark, clip_low, clip_high) - offset) / scale),
    )


def _robust_moments(
    tissue: Float64[np.ndarray, " tissue"],
    low: float,
    high: float,
    sample: Float32[np.ndarray, " voxels"],
) -> tuple[float, float]:
    """Mean and standard deviation of an MR volume's tissue, clipped to its 0.5 and 99.5 percentiles.

    Unlike median and quartiles they stay meaningful when most of the tissue has one value (8-bit data,
    masks). Where even that has no spread, the volume's own spread has to do.
    """
    clipped = np.clip(tissue, low, high)
    spread = float(clipped.std()) or float(tissue.std()) or float(sample.astype(np.float64).std())
    return float(clipped.mean()), spread or 1.0


class _Crop:
    """A channel's crop, normalised a few slices at a time: `(clip(source) - offset) / scale`, in float32."""

    def __init__(self, numbers: Shaped[np.ndarray, "z y x"], scaling: Scaling, intensity: Intensity) -> None:
        self._numbers, self._scaling, self._intensity = numbers, scaling, intensity
        low, high = self._normalise(np.array(value_range(numbers, scaling), dtype=np.float32))
        self.range = float(low), float(high)
        """The lowest and the highest value."""

    def planes(self, start: int, stop: int) -> Float32[np.ndarray, "planes y x"]:
        """The values of some slices."""
        return self._normalise(self._scaling.values(self._numbers[start:stop]))

    def _normalise(self, values: Float32[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
        normalised: Float32[np.ndarray, "*shape"] = np.clip(
            values, self._intensity.clip_low, self._intensity.clip_high
        )
        normalised -= np.float32(self._intensity.offset)
        normalised /= np.float32(self._intensity.scale)
        return normalised
