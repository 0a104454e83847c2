"""From a `Case` to a checked `Volume`: RAS, `z y x`, float32 image and uint8 label."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from jaxtyping import Float32, Shaped, UInt8

from hssl_dist.errors import InputError
from hssl_dist.imaging.orientation import ras_spacing_mm, to_ras
from hssl_dist.imaging.source import SourceHeader, SourceImage, read_source
from hssl_dist.records import Case, Geometry, Shape, Volume

GRID_TOLERANCE_VOXELS = 0.1
"""Two files share a grid if no corner voxel lies further apart than this share of the smallest voxel edge."""

LABEL_TOLERANCE = 1e-3
"""A label stored as float counts as whole numbers up to this much (scaled or converted masks)."""


def load_case(case: Case, classes: dict[int, str], max_voxels: int) -> Volume:
    """Read, check and orient a case.

    `classes` are the declared label values (without 0, the background); `max_voxels` bounds the voxels, over
    all channels, that a header may declare. Raises InputError with one true reason if a file is missing,
    damaged, too large, of a type or geometry that is no 3D image, holds NaN, infinity or a single value, or
    if the label lies on another grid or holds other values. A label without any foreground is accepted.
    """
    first = read_source(case.images[0], max_voxels)
    channels = _channel_count(case, first.header, max_voxels)
    shape: Shape = to_ras(first.raw[0], first.header.affine).shape
    image = np.empty((channels, *shape), dtype=np.float32)
    later = (read_source(url, max_voxels) for url in case.images[1:])
    index = 0
    for source in itertools.chain([first], later):
        if index > 0 and source.header.channels != 1:
            raise InputError(
                f"{source.name}: {source.header.channels} channels in a file that is one channel"
            )
        _check_grid(source, first)
        for raw in source.raw:
            _fill_channel(image[index], raw, source)
            index += 1
    label = _load_label(case.label, first, classes, max_voxels) if case.label is not None else None
    spacing_mm = ras_spacing_mm(first.header.affine)
    geometry = Geometry(
        original_shape=first.header.shape,
        original_affine=cast("Any", tuple(tuple(float(x) for x in row) for row in first.header.affine)),
        oriented_shape=shape,
        oriented_spacing_mm=spacing_mm,
        crop_start=(0, 0, 0),
        crop_stop=shape,
        shape=shape,
        spacing_mm=spacing_mm,
    )
    return Volume(image, label, spacing_mm, case.modalities, geometry)


def _channel_count(case: Case, header: SourceHeader, max_voxels: int) -> int:
    """Channels of the case, after checking that the first file fits them."""
    channels = len(case.modalities)
    expected = channels if len(case.images) == 1 else 1
    if header.channels != expected:
        raise InputError(
            f"{case.id}: the image has {header.channels} channels (4th dimension); the dataset has {expected}"
        )
    if channels * math.prod(header.shape) > max_voxels:
        raise InputError(f"{case.id}: {channels} channels of {header.shape} exceed max_voxels {max_voxels}")
    return channels


def _check_grid(source: SourceImage, reference: SourceImage) -> None:
    """Raise InputError unless both files have the same shape and, within the tolerance, the same affine."""
    shape, expected = source.header.shape, reference.header.shape
    if shape != expected:
        raise InputError(f"{source.name}: shape {shape} differs from {expected} of {reference.name}")
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, size - 1) for size in shape))])
    apart = corners @ (source.header.affine - reference.header.affine).T[:, :3]
    distance = float(np.linalg.norm(apart, axis=1).max())
    edge = min(ras_spacing_mm(reference.header.affine))
    if distance > GRID_TOLERANCE_VOXELS * edge:
        raise InputError(
            f"{source.name}: lies up to {distance:.3g} mm away from {reference.name} (affines differ); "
            f"at most {GRID_TOLERANCE_VOXELS * edge:.3g} mm is tolerated"
        )


def _scaled_slices(
    raw: Shaped[np.ndarray, "z y x"], header: SourceHeader
) -> Iterator[Shaped[np.ndarray, "y x"]]:
    """Slices of true intensities: as stored if unscaled, else float64. One slice at a time bounds memory."""
    scaled = (header.slope, header.intercept) != (1.0, 0.0)
    for plane in raw:
        yield plane * np.float64(header.slope) + header.intercept if scaled else plane


def _fill_channel(
    channel: Float32[np.ndarray, "z y x"], raw: Shaped[np.ndarray, "k j i"], source: SourceImage
) -> None:
    """Write one channel's intensities, oriented, and check that they are finite and not all the same."""
    oriented = to_ras(raw, source.header.affine)
    with np.errstate(over="ignore", invalid="ignore"):
        for plane, values in zip(channel, _scaled_slices(oriented, source.header), strict=True):
            plane[...] = values
    low, high = float(channel.min()), float(channel.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = int(channel.size - np.count_nonzero(np.isfinite(channel)))
        raise InputError(f"{source.name}: {bad} of {channel.size} voxels are NaN or infinite")
    if low == high:
        raise InputError(f"{source.name}: the image is constant: every voxel is {low:g}")


def _load_label(
    url: str, image: SourceImage, classes: dict[int, str], max_voxels: int
) -> UInt8[np.ndarray, "z y x"]:
    """A label as uint8, oriented like its image."""
    source = read_source(url, max_voxels)
    if source.header.channels != 1:
        raise InputError(f"{source.name}: the label has {source.header.channels} channels; 1 is needed")
    _check_grid(source, image)
    oriented = to_ras(source.raw[0], image.header.affine)
    label = np.empty(oriented.shape, dtype=np.uint8)
    declared = {0, *classes}
    undeclared: set[int] = set()
    for plane, values in zip(label, _scaled_slices(oriented, source.header), strict=True):
        whole = _whole_numbers(values, source.name)
        undeclared |= {int(value) for value in np.unique(whole)} - declared
        if undeclared:
            break
        plane[...] = whole
    if undeclared:
        shown = ", ".join(str(value) for value in sorted(undeclared)[:5])
        names = ", ".join(str(value) for value in sorted(declared))
        raise InputError(f"{source.name}: the label holds {shown}; the dataset declares {names}")
    return label


def _whole_numbers(values: Shaped[np.ndarray, "y x"], name: str) -> Shaped[np.ndarray, "y x"]:
    if values.dtype.kind != "f":
        return values
    if not np.isfinite(values).all():
        raise InputError(f"{name}: the label has NaN or infinite voxels")
    whole: Shaped[np.ndarray, "y x"] = np.rint(values)
    gap = np.abs(values - whole)
    if gap.max() > LABEL_TOLERANCE:
        raise InputError(f"{name}: the label holds {values.flat[gap.argmax()]:g}; whole numbers are needed")
    return whole
