"""Whole volumes in float32, one step after the other: the slow reference of what is done slice by slice."""

from __future__ import annotations

import numpy as np

from hssl_dist.imaging import resampling


def resample_whole(array, spacing_mm, shape, target_mm):
    """A whole image by dense matrices, cut to its own range."""
    kernels = resampling.suitable_kernels(spacing_mm, target_mm)
    matrices = resampling._matrices(array.shape, spacing_mm, shape, target_mm, kernels)
    result = array.astype(np.float64)
    for axis, matrix in enumerate(matrices):
        if matrix is not None:
            result = np.moveaxis(
                np.tensordot(matrix.toarray().astype(np.float64), result, (1, axis)), 0, axis
            )
    return np.clip(result, array.min(), array.max()).astype(np.float32)


def streamed(array, spacing_mm, shape, target_mm):
    """A whole image by the streaming resampler, slabs joined."""
    slabs = resampling.resample_image(
        lambda start, stop: array[start:stop], array.shape, spacing_mm, shape, target_mm
    )
    joined = np.concatenate([slab.copy() for slab in slabs])
    return np.clip(joined, array.min(), array.max())


def prepare_whole(volume, recipe, intensities, geometry):
    """A volume's image on the grid of `geometry`, in float32: cropped, clipped, normalised, resampled."""
    values = volume.scaling.values(volume.image)
    box = tuple(slice(a, b) for a, b in zip(geometry.crop_start, geometry.crop_stop, strict=True))
    channels = []
    for channel, intensity in zip(values, intensities, strict=True):
        clipped = np.clip(channel[box].astype(np.float64), intensity.clip_low, intensity.clip_high)
        normalised = (clipped - intensity.offset) / intensity.scale
        channels.append(resample_whole(normalised, volume.spacing_mm, geometry.shape, geometry.spacing_mm))
    return np.stack(channels)
