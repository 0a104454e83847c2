"""From a loaded volume to the stored one - crop, normalise, resample - and, for labels, all the way back."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float32, Float64, UInt8

from hssl_dist.errors import InputError
from hssl_dist.imaging.orientation import from_ras
from hssl_dist.imaging.recipe import ChannelRecipe, Recipe
from hssl_dist.imaging.resampling import resample_image, resample_label, resampled_grid
from hssl_dist.imaging.tissue import foreground_box, robust_range, spaced_sample, tissue_threshold
from hssl_dist.records import Geometry, Intensity, Shape, Triple, Volume

MAX_GROWTH = 64
"""Resampling may multiply a volume's voxels by this; more means that a header's spacing is wrong."""

MR_CLIP_STD = 10.0
"""MR is clipped so many standard deviations from the mean: beyond any anatomy, but a spike is bounded."""


def prepare(volume: Volume, recipe: Recipe) -> tuple[Volume, tuple[Intensity, ...]]:
    """Crop to the foreground, normalise every channel and resample to the recipe's spacing.

    `volume` comes from `load_case` and is left as it is. Returns the volume to store (float32 image, uint8
    label) and, per channel, its intensities before and after. The same input gives the same bytes, in any
    process. Besides the loaded volume and the result it holds at most three float32 arrays of one channel's
    size, before or after resampling. Raises InputError if the spacing would blow the volume up.
    """
    start, stop = foreground_box(volume)
    size: Shape = (stop[0] - start[0], stop[1] - start[1], stop[2] - start[2])
    shape, spacing_mm = resampled_grid(size, volume.spacing_mm, recipe.spacing_mm)
    _check_growth(size, shape, volume.spacing_mm, recipe.spacing_mm)
    box = tuple(slice(low, high) for low, high in zip(start, stop, strict=True))

    image = np.empty((len(volume.modalities), *shape), dtype=np.float32)
    intensities = []
    for index, (channel, rule) in enumerate(zip(volume.image, recipe.channels, strict=True)):
        intensity = _intensity(channel, rule)
        normalised = _normalise(channel[box], intensity)
        image[index] = resample_image(normalised, volume.spacing_mm, shape, spacing_mm)
        intensities.append(intensity)
    label = volume.label
    if label is not None:
        label = resample_label(np.ascontiguousarray(label[box]), volume.spacing_mm, shape, spacing_mm)
    geometry = volume.geometry.model_copy(
        update={"crop_start": start, "crop_stop": stop, "shape": shape, "spacing_mm": spacing_mm}
    )
    return Volume(image, label, spacing_mm, volume.modalities, geometry), tuple(intensities)


def restore(label: UInt8[np.ndarray, "z y x"], geometry: Geometry) -> UInt8[np.ndarray, "i j k"]:
    """A label of the stored grid on the source file's grid, shape and axes exactly; 0 outside the crop."""
    if label.shape != geometry.shape:
        raise ValueError(f"label has shape {label.shape}; the stored volume has {geometry.shape}")
    box = tuple(slice(a, b) for a, b in zip(geometry.crop_start, geometry.crop_stop, strict=True))
    oriented = np.zeros(geometry.oriented_shape, dtype=np.uint8)
    oriented[box] = resample_label(
        label, geometry.spacing_mm, oriented[box].shape, geometry.oriented_spacing_mm
    )
    return np.ascontiguousarray(from_ras(oriented, np.asarray(geometry.original_affine)))


def _check_growth(size: Shape, shape: Shape, spacing_mm: Triple, target_mm: Triple) -> None:
    if math.prod(shape) > MAX_GROWTH * math.prod(size):
        raise InputError(
            f"resampling from {spacing_mm} to {target_mm} mm would turn {size} voxels into {shape}; "
            "the spacing in the file's header cannot be right"
        )


def _intensity(channel: Float32[np.ndarray, "z y x"], rule: ChannelRecipe) -> Intensity:
    """A channel's statistics over its tissue, and how it is normalised.

    `background` is the 2nd percentile of the volume: air, wherever there is any.
    """
    sample = spaced_sample(channel)
    tissue = sample[sample > tissue_threshold(channel, rule.rule)].astype(np.float64)
    tissue = tissue if tissue.size else sample.astype(np.float64)
    low, high = (float(value) for value in np.percentile(tissue, (0.5, 99.5)))
    if rule.rule == "ct":
        clip_low, clip_high, offset, scale = rule.clip_low, rule.clip_high, rule.offset, rule.scale
    else:
        offset, scale = _robust_moments(tissue, low, high, sample)
        clip_low, clip_high = offset - MR_CLIP_STD * scale, offset + MR_CLIP_STD * scale
    if clip_low is None or clip_high is None or offset is None or scale is None:
        raise ValueError(f"a recipe of rule {rule.rule!r} needs its four numbers; got {rule}")
    dark, _ = robust_range(sample, rule.rule)
    return Intensity(
        minimum=float(channel.min()),
        maximum=float(channel.max()),
        mean=float(tissue.mean()),
        std=float(tissue.std()),
        percentile_00_5=low,
        percentile_99_5=high,
        clip_low=clip_low,
        clip_high=clip_high,
        offset=offset,
        scale=scale,
        background=float((np.clip(dark, clip_low, clip_high) - offset) / scale),
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


def _normalise(channel: Float32[np.ndarray, "z y x"], intensity: Intensity) -> Float32[np.ndarray, "z y x"]:
    """`(clip(source) - offset) / scale`, in float32."""
    normalised: Float32[np.ndarray, "z y x"] = np.clip(channel, intensity.clip_low, intensity.clip_high)
    normalised -= np.float32(intensity.offset)
    normalised /= np.float32(intensity.scale)
    return normalised
