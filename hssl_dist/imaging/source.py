"""A source file as its format's reader returns it, and which reader that is.

A format is a function `(url, max_voxels) -> SourceImage` and a line in `_READERS`.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Shaped

from hssl_dist.errors import InputError
from hssl_dist.records import Shape


@dataclass(frozen=True, slots=True)
class SourceHeader:
    """What a header says: `shape` is `x y z`, `affine` maps `x y z` indices to mm (RAS).

    The intensity of a voxel is `raw * slope + intercept`.
    """

    shape: Shape
    channels: int
    dtype: np.dtype[Any]
    slope: float
    intercept: float
    affine: Float64[np.ndarray, "4 4"]


@dataclass(frozen=True, slots=True)
class SourceImage:
    """A header, and the voxels before `slope` and `intercept`, the file's axes `i j k` reversed."""

    name: str
    header: SourceHeader
    raw: Shaped[np.ndarray, "channel k j i"]


def read_source(url: str, max_voxels: int) -> SourceImage:
    """Read an image or label from a path or URL, by the reader of its name's ending.

    The header is checked before any voxel is read: no more than `max_voxels` may be declared. Raises
    InputError with the file's name and the reason.
    """
    name = posixpath.basename(url)
    for ending, reader in _READERS.items():
        if name.endswith(ending):
            return reader(url, max_voxels)
    raise InputError(f"{name}: no reader for this kind of file; known are {', '.join(_READERS)}")


def _nifti(url: str, max_voxels: int) -> SourceImage:
    from hssl_dist.imaging.nifti import read_nifti

    return read_nifti(url, max_voxels)


_READERS: dict[str, Callable[[str, int], SourceImage]] = {".nii.gz": _nifti, ".nii": _nifti}
