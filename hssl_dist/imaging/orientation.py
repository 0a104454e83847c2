"""From a file's own axes to RAS, `z y x`, and back.

Voxels are moved, never interpolated: every axis goes to the anatomical axis it is closest to, so the axes of
an oblique scan stay oblique, and turning back is exact.
"""

from __future__ import annotations

import functools
from typing import cast

import nibabel
import numpy as np
from jaxtyping import Float64, Shaped
from nibabel import orientations

from hssl_dist.records import Triple

_RAS = np.array([[0, 1], [1, 1], [2, 1]])


def to_ras(
    array_kji: Shaped[np.ndarray, "k j i"], affine: Float64[np.ndarray, "4 4"]
) -> Shaped[np.ndarray, "z y x"]:
    """A view of a file's voxels (its axes `i j k` reversed) whose axes run to S, A and R."""
    turned: Shaped[np.ndarray, "x y z"] = orientations.apply_orientation(array_kji.T, _ornt(affine))
    return turned.T


def from_ras(
    array_zyx: Shaped[np.ndarray, "z y x"], affine: Float64[np.ndarray, "4 4"]
) -> Shaped[np.ndarray, "i j k"]:
    """The inverse of `to_ras`, in the file's own order `i j k`."""
    back = orientations.ornt_transform(_RAS, _ornt(affine))
    turned: Shaped[np.ndarray, "i j k"] = orientations.apply_orientation(array_zyx.T, back)
    return turned


def ras_spacing_mm(affine: Float64[np.ndarray, "4 4"]) -> Triple:
    """Spacing `z y x` after `to_ras`, rounded to a nanometre to rid it of float32 noise."""
    sizes = nibabel.affines.voxel_sizes(affine)
    ras = np.empty(3)
    ras[_ornt(affine)[:, 0].astype(int)] = sizes
    return cast("Triple", tuple(round(float(size), 6) for size in ras[::-1]))


def _ornt(affine: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, "3 2"]:
    return _ornt_of(np.asarray(affine, dtype=np.float64)[:3, :3].tobytes())


@functools.lru_cache(maxsize=64)
def _ornt_of(axes: bytes) -> Float64[np.ndarray, "3 2"]:
    """nibabel's orientation of an affine's axes: a singular value decomposition, the same for many files."""
    affine = np.eye(4)
    affine[:3, :3] = np.frombuffer(axes).reshape(3, 3)
    ornt: Float64[np.ndarray, "3 2"] = orientations.io_orientation(affine)
    return ornt
