"""From a `Case` to a checked `Volume`: RAS, `z y x`, the image as its file has it, uint8 label."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
from jaxtyping import Shaped

from hssl_dist.errors import InputError
from hssl_dist.imaging.labels import check_grid, load_label
from hssl_dist.imaging.orientation import ras_spacing_mm, to_ras
from hssl_dist.imaging.slabs import slabs
from hssl_dist.imaging.source import SourceHeader, SourceImage, read_source
from hssl_dist.imaging.tissue import value_range
from hssl_dist.records import Case, Geometry, Scaling, Shape, Volume

Numbers = np.ndarray[Any, np.dtype[Any]]

WIDEST_BYTES = 2
"""Voxels up to so wide are held as the file has them; float32 would take more memory and say no more."""

MAX_INTENSITY = 1e12
"""Beyond any scanner's unit; a voxel there is a damaged one, and would spoil the volume's statistics."""


def load_case(case: Case, classes: dict[int, str], max_voxels: int) -> Volume:
    """Read, check and orient a case.

    `classes` are the declared label values (without 0, the background); `max_voxels` bounds the voxels, over
    all channels, that a header may declare. Voxels of one or two bytes stay as the file has them, with its
    scaling; wider ones become float32. Memory: the files' voxels twice. Raises InputError with one true
    reason if a file is missing, damaged, too large, of a type or geometry that is no 3D image, holds NaN,
    infinity or a single value, or if the label lies on another grid or holds other values. A label without
    any foreground is accepted.
    """
    first = read_source(case.images[0], max_voxels)
    _check_channels(case, first, max_voxels)
    name, header = first.name, first.header
    sources = [first, *(_read_channel(url, name, header, max_voxels) for url in case.images[1:])]
    del first  # so that `_take` frees one file's voxels after the other
    image, scaling = _take(sources)
    label = load_label(case.label, classes, max_voxels, (name, header)) if case.label is not None else None
    shape: Shape = image.shape[1:]
    spacing_mm = ras_spacing_mm(header.affine)
    geometry = Geometry(
        original_shape=header.shape,
        original_affine=cast("Any", tuple(tuple(float(x) for x in row) for row in header.affine)),
        oriented_shape=shape,
        oriented_spacing_mm=spacing_mm,
        crop_start=(0, 0, 0),
        crop_stop=shape,
        shape=shape,
        spacing_mm=spacing_mm,
    )
    return Volume(image, label, spacing_mm, case.modalities, geometry, scaling)


def _check_channels(case: Case, first: SourceImage, max_voxels: int) -> None:
    """Raise InputError unless the first file has as many channels as it should."""
    channels, found = len(case.modalities), first.header.channels
    wanted = f"{channels} {'channel is' if channels == 1 else 'channels are'} expected"
    wanted += f" ({', '.join(case.modalities)})"
    if found > 1 and len(case.images) > 1:
        raise InputError(f"{first.name}: {found} channels in a file that is one channel")
    if found > 1 and found != channels:
        raise InputError(f"{first.name}: the image has {found} channels (4th dimension), but {wanted}")
    if found == 1 < channels and len(case.images) == 1:
        raise InputError(
            f"{first.name}: the image has one channel, but {wanted}: put them into the 4th dimension, or "
            "into files of their own as nnU-Net does (_0000, _0001, ...)"
        )
    if channels * math.prod(first.header.shape) > max_voxels:
        raise InputError(
            f"{first.name}: {channels} channels of {first.header.shape} exceed max_voxels {max_voxels}"
        )


def _read_channel(url: str, name: str, header: SourceHeader, max_voxels: int) -> SourceImage:
    """A further file of a case whose first is called `name`."""
    source = read_source(url, max_voxels)
    if source.header.channels != 1:
        raise InputError(f"{source.name}: {source.header.channels} channels in a file that is one channel")
    check_grid(source, name, header)
    return source


def _take(sources: list[SourceImage]) -> tuple[Numbers, Scaling]:
    """All channels of some files, oriented, in one piece; empties the list as it goes."""
    kept = {(source.header.dtype.newbyteorder("="), source.header.scaling) for source in sources}
    exact = len(kept) == 1 and sources[0].header.dtype.itemsize <= WIDEST_BYTES
    dtype, scaling = kept.pop() if exact else (np.dtype(np.float32), Scaling())
    image: Numbers | None = None
    index = 0
    while sources:
        source = sources.pop(0)
        for raw in source.raw:
            oriented = to_ras(raw, source.header.affine)
            if image is None:
                image = np.empty((source.header.channels + len(sources), *oriented.shape), dtype)
            with np.errstate(over="ignore", invalid="ignore"):
                for slab in slabs(oriented.shape):
                    part = oriented[slab]
                    image[index, slab] = part if exact else source.header.scaling.values(part)
                _check_values(image[index], scaling, source.name)
            index += 1
    if image is None:
        raise ValueError("a case needs a file")
    return image, scaling


def _check_values(channel: Shaped[np.ndarray, "z y x"], scaling: Scaling, name: str) -> None:
    """Raise InputError unless all intensities are finite, possible, and some differ."""
    low, high = value_range(channel, scaling)
    if not (math.isfinite(low) and math.isfinite(high)):
        finite = sum(
            np.count_nonzero(np.isfinite(scaling.values(channel[slab]))) for slab in slabs(channel.shape)
        )
        raise InputError(f"{name}: {channel.size - finite} of {channel.size} voxels are NaN or infinite")
    if max(-low, high) > MAX_INTENSITY:
        raise InputError(
            f"{name}: intensities from {low:.3g} to {high:.3g}; beyond {MAX_INTENSITY:g} none can be"
        )
    if low == high:
        raise InputError(f"{name}: the image is constant: every voxel is {low:g}")
