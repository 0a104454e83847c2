"""From one grid to another: separable, deterministic, bounded in memory.

Both grids share their centre and keep their true spacing, so anatomy is never stretched to fill a rounded
shape; beyond the border the outermost voxel goes on. Each axis is one sparse matrix whose rows are
interpolation weights. Where an image gets coarser, its kernel is widened by that factor, which averages
instead of aliasing. Sparse products run in one fixed order, so results do not depend on threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from scipy import ndimage, sparse

from hssl_dist.imaging.recipe import ANISOTROPY
from hssl_dist.records import Shape, Triple

SAME_SPACING = 1e-3
"""Spacings that differ by less than this share are the same: the axis is left alone."""

Kernel = Literal["linear", "cubic", "share"]
Matrix = Any  # scipy's csr_array, or None for an axis that is left alone


def resampled_grid(shape: Shape, spacing_mm: Triple, target_mm: Triple) -> tuple[Shape, Triple]:
    """Shape and spacing `z y x` after resampling to `target_mm`; an axis that is left alone keeps its own."""
    sizes, spacings = [], []
    for size, source, target in zip(shape, spacing_mm, target_mm, strict=True):
        same = abs(target / source - 1.0) < SAME_SPACING
        sizes.append(size if same else max(1, round(size * source / target)))
        spacings.append(source if same else target)
    return cast("Shape", tuple(sizes)), cast("Triple", tuple(spacings))


def resample_image(
    channel: Float32[np.ndarray, "z y x"], spacing_mm: Triple, shape: Shape, target_mm: Triple
) -> Float32[np.ndarray, "new_z new_y new_x"]:
    """Cubic in the plane of thick slices and linear through them; cubic everywhere if there are none.

    Cubic interpolation between thick slices would ring with structures that merely end between them. Where it
    overshoots elsewhere, it is cut to the source's own range.
    """
    coarse = _thick_axis(spacing_mm, target_mm)
    kernels: list[Kernel] = ["linear" if axis == coarse else "cubic" for axis in range(3)]
    matrices = _matrices(channel.shape, spacing_mm, shape, target_mm, kernels)
    if all(matrix is None for matrix in matrices):
        return channel
    resampled = _apply(channel, matrices)
    return np.clip(resampled, channel.min(), channel.max(), out=resampled)


def resample_label(
    label: UInt8[np.ndarray, "z y x"], spacing_mm: Triple, shape: Shape, target_mm: Triple
) -> UInt8[np.ndarray, "new_z new_y new_x"]:
    """The class with the largest share at each voxel: every class is interpolated linearly by itself.

    The kernel is not widened: averaging first would shave off what is thin. On real nodules and lesions, to
    the target grid and back, Dice is 0.970 and 0.997 without widening, 0.965 and 0.988 with it.
    Memory: three float32 volumes of the new shape. A class only costs the box it lies in.
    """
    matrices = _matrices(label.shape, spacing_mm, shape, target_mm, ["share"] * 3)
    if all(matrix is None for matrix in matrices):
        return label
    winner = np.zeros(shape, dtype=np.uint8)
    best = np.zeros(shape, dtype=np.float32)
    rest = np.ones(shape, dtype=np.float32)  # the background's share: all weights sum to one
    for value, box in enumerate(ndimage.find_objects(label), start=1):
        if box is None:
            continue
        parts, region = _restrict(matrices, box)
        share = _apply((label[box] == value).astype(np.float32), parts)
        rest[region] -= share
        larger = share > best[region]
        winner[region][larger] = value
        best[region][larger] = share[larger]
    winner[rest > best] = 0
    return winner


def _thick_axis(spacing_mm: Triple, target_mm: Triple) -> int | None:
    """The axis of thick slices of the source or, if it has none, of the target."""
    for spacings in (spacing_mm, target_mm):
        if max(spacings) > ANISOTROPY * min(spacings):
            return int(np.argmax(spacings))
    return None


def _matrices(
    shape: Shape, spacing_mm: Triple, new_shape: Shape, target_mm: Triple, kernels: list[Kernel]
) -> list[Matrix]:
    axes = zip(shape, spacing_mm, new_shape, target_mm, kernels, strict=True)
    return [
        None if size == new and source == target else _matrix(size, new, target / source, kernel)
        for size, source, new, target, kernel in axes
    ]


def _matrix(size: int, new_size: int, ratio: float, kernel: Kernel) -> Matrix:
    """Weights `new_size x size`; `ratio` is the new spacing over the old."""
    weigh, reach, widened = KERNELS[kernel]
    stretch = max(ratio, 1.0) if widened else 1.0
    centres = (np.arange(new_size) + 0.5 - 0.5 * new_size) * ratio + 0.5 * size - 0.5
    first = np.ceil(centres - reach * stretch).astype(np.int64)
    columns = first[:, None] + np.arange(int(2 * reach * stretch) + 1)
    weights = weigh(np.abs(columns - centres[:, None]) / stretch)
    weights /= weights.sum(axis=1, keepdims=True)
    rows = np.repeat(np.arange(new_size), columns.shape[1])
    inside = np.clip(columns, 0, size - 1).ravel()
    matrix = sparse.coo_array((weights.ravel(), (rows, inside)), shape=(new_size, size)).tocsr()
    matrix.eliminate_zeros()
    return matrix.astype(np.float32)


def _linear(distance: Float64[np.ndarray, "new tap"]) -> Float64[np.ndarray, "new tap"]:
    return np.maximum(1.0 - distance, 0.0)


def _cubic(distance: Float64[np.ndarray, "new tap"]) -> Float64[np.ndarray, "new tap"]:
    """Keys' cubic convolution, a = -1/2 (IEEE ASSP 1981): third order, four taps."""
    near = (1.5 * distance - 2.5) * distance**2 + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    return np.where(distance <= 1.0, near, np.where(distance < 2.0, far, 0.0))


KERNELS: dict[Kernel, tuple[Callable[[Float64[np.ndarray, "new tap"]], Any], float, bool]] = {
    "linear": (_linear, 1.0, True),
    "cubic": (_cubic, 2.0, True),
    "share": (_linear, 1.0, False),
}
"""Weight by distance in source voxels, how far it reaches, and whether a coarser grid widens it."""


def _restrict(
    matrices: list[Matrix], box: tuple[slice, ...]
) -> tuple[list[Matrix], tuple[slice, slice, slice]]:
    """The matrices' columns of a source box, their rows that touch it, and those rows as a box."""
    parts: list[Matrix] = []
    region: list[slice] = []
    for matrix, extent in zip(matrices, box, strict=True):
        if matrix is None:
            parts.append(None)
            region.append(extent)
            continue
        columns = matrix[:, extent.start : extent.stop]
        touched = np.flatnonzero(np.diff(columns.indptr))
        rows = slice(int(touched[0]), int(touched[-1]) + 1) if touched.size else slice(0, 0)
        parts.append(columns[rows])
        region.append(rows)
    return parts, (region[0], region[1], region[2])


def _apply(
    array: Float32[np.ndarray, "z y x"], matrices: list[Matrix]
) -> Float32[np.ndarray, "new_z new_y new_x"]:
    """Multiply each axis by its matrix: within the slices one slice at a time, then across them."""
    across, down, along = matrices
    if down is not None or along is not None:
        rows = array.shape[1] if down is None else down.shape[0]
        columns = array.shape[2] if along is None else along.shape[0]
        planes = np.empty((array.shape[0], rows, columns), dtype=np.float32)
        for plane, source in zip(planes, array, strict=True):
            part = source if down is None else down @ source
            plane[...] = part if along is None else (along @ part.T).T
        array = planes
    if across is not None:
        flat = across @ np.ascontiguousarray(array).reshape(array.shape[0], -1)
        array = np.asarray(flat).reshape(across.shape[0], *array.shape[1:])
    return array
