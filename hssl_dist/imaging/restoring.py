"""From the stored grid back to the source file's: the scores a network gives each class, as labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import cast

import numpy as np
from jaxtyping import Float32, UInt8

from hssl_dist.imaging.orientation import from_ras
from hssl_dist.imaging.resampling import SLAB_VOXELS, Kernel, resample_image
from hssl_dist.records import Geometry, Shape

Slab = Float32[np.ndarray, "class planes y x"]

SCORE_KERNELS: tuple[Kernel, Kernel, Kernel] = ("share", "share", "share")
"""Linear, and never widened: chosen by what it gives (docs/decisions.md)."""


def restore_scores(
    slabs: Iterable[Slab], geometry: Geometry, kernels: tuple[Kernel, Kernel, Kernel] = SCORE_KERNELS
) -> UInt8[np.ndarray, "i j k"]:
    """The class with the highest score at each voxel of the source file's grid; 0 outside the crop.

    `slabs` are the scores (logits, say) of the stored grid, slice by slice in order; what of them is not
    needed is not asked for. Scores are interpolated and then compared, so that borders between classes run
    between voxels of the stored grid. Memory: the label, and a slab of a few slices.
    """
    box = tuple(slice(a, b) for a, b in zip(geometry.crop_start, geometry.crop_stop, strict=True))
    oriented = np.zeros(geometry.oriented_shape, dtype=np.uint8)
    crop, z = oriented[box], 0
    for slab in _winners(slabs, geometry, cast("Shape", crop.shape), kernels):
        crop[z : z + len(slab)] = slab
        z += len(slab)
    return np.ascontiguousarray(from_ras(oriented, np.asarray(geometry.original_affine)))


def _winners(
    slabs: Iterable[Slab], geometry: Geometry, shape: Shape, kernels: tuple[Kernel, Kernel, Kernel]
) -> Iterator[UInt8[np.ndarray, "planes y x"]]:
    planes = _Planes(slabs)
    each = [
        resample_image(
            partial(planes, value),
            geometry.shape,
            geometry.spacing_mm,
            shape,
            geometry.oriented_spacing_mm,
            kernels,
            SLAB_VOXELS // planes.classes,
        )
        for value in range(planes.classes)
    ]
    for scores in zip(*each, strict=True):
        yield _highest(scores)


def _highest(scores: Sequence[Float32[np.ndarray, "planes y x"]]) -> UInt8[np.ndarray, "planes y x"]:
    """The class of the highest score, the first of equals."""
    best = scores[0].copy()
    winner = np.zeros(best.shape, dtype=np.uint8)
    for value, score in enumerate(scores[1:], start=1):
        np.copyto(winner, value, where=score > best)
        np.maximum(best, score, out=best)
    return winner


class _Planes:
    """Slices of scores by class, for readers that each go through all slices, the classes in turn."""

    def __init__(self, slabs: Iterable[Slab]) -> None:
        self._slabs = iter(slabs)
        self._held: dict[int, Float32[np.ndarray, "class y x"]] = {}
        self._known = 0
        self._load()
        self.classes = len(self._held[0])

    def __call__(self, value: int, start: int, stop: int) -> Float32[np.ndarray, "planes y x"]:
        """Slices of a class; the last class to ask lets them go, and what lies before them."""
        while stop > self._known:
            self._load()
        planes: Float32[np.ndarray, "planes y x"] = np.stack(
            [self._held[z][value] for z in range(start, stop)]
        )
        if value == self.classes - 1:
            for z in [z for z in self._held if z < stop]:
                del self._held[z]
        return planes

    def _load(self) -> None:
        for scores in np.moveaxis(next(self._slabs), 1, 0):
            self._held[self._known] = scores
            self._known += 1
