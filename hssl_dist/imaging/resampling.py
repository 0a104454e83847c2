"""From one grid to another: separable, deterministic, bounded in memory.

Both grids share their centre and keep their true spacing, so anatomy is never stretched to fill a rounded
shape; beyond the border the outermost voxel goes on. Each axis is one sparse matrix whose rows are
interpolation weights. Where an image gets coarser, its kernel is widened by that factor, which averages
instead of aliasing. Sparse products run in one fixed order, so results do not depend on threads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, cast

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from scipy import ndimage, sparse

from hssl_dist.imaging.recipe import ANISOTROPY
from hssl_dist.imaging.slabs import slabs
from hssl_dist.records import Shape, Triple

SAME_SPACING = 1e-3
"""Spacings that differ by less than this share are the same: the axis is left alone."""

SLAB_VOXELS = 1 << 18
"""Slabs of new slices, and tiles of labels, hold about so many voxels: a megabyte of float32."""

TILE_PLANES = 16
"""Slices of a tile: source slices at its ends are resampled for the next one, too."""

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
    planes: Callable[[int, int], Float32[np.ndarray, "planes y x"]],
    old_shape: Shape,
    spacing_mm: Triple,
    shape: Shape,
    target_mm: Triple,
    kernels: tuple[Kernel, Kernel, Kernel] | None = None,
    slab_voxels: int = SLAB_VOXELS,
) -> Iterator[Float32[np.ndarray, "planes new_y new_x"]]:
    """A volume on another grid, by the kernels that suit its spacings if no others are given.

    `planes(start, stop)` gives source slices; it is asked for each at most once, in order. Yields the new
    volume in slabs of a few slices, in order; memory is that of the slabs. A slab may be overwritten by
    whoever gets it. Cubic interpolation can leave the source's range; cutting that is the caller's.
    """
    kernels = kernels or suitable_kernels(spacing_mm, target_mm)
    across, down, along = _matrices(old_shape, spacing_mm, shape, target_mm, kernels)
    if across is None:
        for slab in slabs(old_shape):
            yield _within(planes(slab.start, slab.stop), down, along)
        return
    held = np.empty((0, *shape[1:]), dtype=np.float32)  # source slices `first` and on, resampled in the plane
    first = 0
    for slab in slabs(shape, slab_voxels=slab_voxels):
        weights, columns = _rows(across, slab)
        begin, end = columns.start, columns.stop
        known = first + len(held)
        grown = np.empty((end - begin, *shape[1:]), dtype=np.float32)
        grown[: max(0, known - begin)] = held[begin - first :]
        for part in slabs((end, *old_shape[1:]), start=max(known, begin)):
            grown[part.start - begin : part.stop - begin] = _within(
                planes(part.start, part.stop), down, along
            )
        held, first = grown, begin
        yield _across(weights, held)


def resample_label(
    label: UInt8[np.ndarray, "z y x"],
    spacing_mm: Triple,
    shape: Shape,
    target_mm: Triple,
    slab_voxels: int = SLAB_VOXELS,
) -> UInt8[np.ndarray, "new_z new_y new_x"]:
    """The class with the largest share at each voxel: every class is interpolated linearly by itself.

    The kernel is not widened: averaging first would shave off what is thin. On real nodules and lesions, to
    the target grid and back, Dice is 0.970 and 0.997 without widening, 0.965 and 0.988 with it.
    Works tile by tile, and a class only costs the box it lies in.
    """
    across, down, along = _matrices(label.shape, spacing_mm, shape, target_mm, ["share"] * 3)
    if across is None and down is None and along is None:
        return np.ascontiguousarray(label)
    winner = np.zeros(shape, dtype=np.uint8)
    rows = max(1, slab_voxels // (TILE_PLANES * shape[2]))
    strips = [(strip, *_rows(down, strip)) for strip in slabs(shape[1:2], slab_voxels=rows)]
    for slab in slabs(shape[:1], slab_voxels=TILE_PLANES):
        through, planes = _rows(across, slab)
        for strip, within, lines in strips:
            part = label[planes, lines]
            if part.any():
                _vote(part, [through, within, along], winner[slab, strip])
    return winner


def _vote(
    label: UInt8[np.ndarray, "z y x"],
    matrices: list[Matrix],
    winner: UInt8[np.ndarray, "new_z new_y new_x"],
) -> None:
    """Write the class with the largest share at each voxel to `winner`, which holds zeros."""
    boxes = ndimage.find_objects(label)
    best = np.zeros(winner.shape, dtype=np.float32)
    rest = np.ones(winner.shape, dtype=np.float32)  # the background's share: all weights sum to one
    for value, box in enumerate(boxes, start=1):
        if box is None:
            continue
        parts, region = _restrict(matrices, box)
        share = _apply((label[box] == value).astype(np.float32), parts)
        rest[region] -= share
        np.copyto(winner[region], value, where=share > best[region])
        np.maximum(best[region], share, out=best[region])
    np.copyto(winner, 0, where=rest > best)


def suitable_kernels(spacing_mm: Triple, target_mm: Triple) -> tuple[Kernel, Kernel, Kernel]:
    """Cubic in the plane of thick slices and linear through them; cubic everywhere if there are none.

    Cubic interpolation between thick slices would ring with structures that merely end between them.
    """
    thick = _thick_axis(spacing_mm, target_mm)
    z, y, x = ("linear" if axis == thick else "cubic" for axis in range(3))
    return cast("tuple[Kernel, Kernel, Kernel]", (z, y, x))


def _thick_axis(spacing_mm: Triple, target_mm: Triple) -> int | None:
    """The axis of thick slices of the source or, if it has none, of the target."""
    for spacings in (spacing_mm, target_mm):
        if max(spacings) > ANISOTROPY * min(spacings):
            return int(np.argmax(spacings))
    return None


def _matrices(
    shape: Shape, spacing_mm: Triple, new_shape: Shape, target_mm: Triple, kernels: Sequence[Kernel]
) -> list[Matrix]:
    axes = zip(shape, spacing_mm, new_shape, target_mm, kernels, strict=True)
    return [
        None if size == new and source == target else _matrix(size, new, target / source, kernel)
        for size, source, new, target, kernel in axes
    ]


@functools.lru_cache(maxsize=64)
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


def _rows(matrix: Matrix, rows: slice) -> tuple[Matrix, slice]:
    """Some rows of a matrix, and the columns they use: the weights have no others."""
    if matrix is None:
        return None, rows
    ends = matrix.indptr[rows.start : rows.stop + 1]
    indices = matrix.indices[ends[0] : ends[-1]]
    columns = slice(int(indices.min()), int(indices.max()) + 1)
    parts = matrix.data[ends[0] : ends[-1]], indices - columns.start, ends - ends[0]
    return sparse.csr_array(parts, shape=(len(ends) - 1, columns.stop - columns.start)), columns


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
        inside = (matrix.indices >= extent.start) & (matrix.indices < extent.stop)
        ends = np.concatenate(([0], np.cumsum(inside)))[matrix.indptr]
        touched = np.flatnonzero(np.diff(ends))
        rows = slice(int(touched[0]), int(touched[-1]) + 1) if touched.size else slice(0, 0)
        columns = matrix.data[inside], matrix.indices[inside] - extent.start, ends[rows.start : rows.stop + 1]
        parts.append(sparse.csr_array(columns, shape=(rows.stop - rows.start, extent.stop - extent.start)))
        region.append(rows)
    return parts, (region[0], region[1], region[2])


def _apply(
    array: Float32[np.ndarray, "z y x"], matrices: list[Matrix]
) -> Float32[np.ndarray, "new_z new_y new_x"]:
    """Multiply each axis by its matrix: within the slices a few at a time, then across them."""
    across, down, along = matrices
    if down is not None or along is not None:
        rows = array.shape[1] if down is None else down.shape[0]
        columns = array.shape[2] if along is None else along.shape[0]
        planes = np.empty((array.shape[0], rows, columns), dtype=np.float32)
        for slab in slabs(array.shape):
            planes[slab] = _within(array[slab], down, along)
        array = planes
    return array if across is None else _across(across, array)


def _across(weights: Matrix, planes: Float32[np.ndarray, "z y x"]) -> Float32[np.ndarray, "new_z y x"]:
    """Slices, resampled across."""
    flat = weights @ planes.reshape(len(planes), -1)
    return np.asarray(flat).reshape(-1, *planes.shape[1:])


def _within(
    planes: Float32[np.ndarray, "planes y x"], down: Matrix, along: Matrix
) -> Float32[np.ndarray, "planes new_y new_x"]:
    """Some slices, resampled in their plane; the sparse product wants each axis to come first."""
    rows = planes
    if down is not None:
        first = planes.transpose(1, 0, 2)
        rows = (down @ first.reshape(len(first), -1)).reshape(-1, *first.shape[1:])  # y planes x
    if along is not None:
        rows = (along @ rows.reshape(-1, rows.shape[-1]).T).T.reshape(*rows.shape[:-1], -1)
    return rows if down is None else rows.transpose(1, 0, 2)
