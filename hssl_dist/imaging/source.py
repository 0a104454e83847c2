"""A source file as its format's reader returns it, and which reader that is.

A format is a function `(url, max_voxels) -> SourceImage` and a line in `_READERS`.
"""

from __future__ import annotations

import math
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, Shaped

from hssl_dist import dicom
from hssl_dist.errors import InputError
from hssl_dist.records import Scaling, Shape

_MIN_EDGE_MM, _MAX_EDGE_MM, _MAX_ORIGIN_MM = 1e-4, 1e4, 1e6
_MIN_VOLUME_RATIO = 1e-3
"""A voxel's volume relative to the product of its edges; below it, the axes lie in one plane."""

SLACK_BYTES = 1 << 16
"""Padding after the last voxel that is let pass."""

_TRUSTED_BYTES = 1 << 26
"""Memory that a header's word alone is good for; beyond it the file must be long enough."""
_MOST_INFLATED = 1032
"""Bytes that one byte of deflated data can become."""


@runtime_checkable
class ByteStream(Protocol):
    """What the readers ask of an open file."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; empty at the end."""
        ...

    def seek(self, offset: int, whence: int, /) -> int:
        """Go to a place; returns it, counted from the start."""
        ...


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

    @property
    def scaling(self) -> Scaling:
        """What the raw numbers stand for."""
        return Scaling(self.slope, self.intercept)


@dataclass(frozen=True, slots=True)
class SourceImage:
    """A header, and the voxels before `slope` and `intercept`, the file's axes `i j k` reversed."""

    name: str
    header: SourceHeader
    raw: Shaped[np.ndarray, "channel k j i"]


def read_source(url: str, max_voxels: int) -> SourceImage:
    """Read an image or label from a path or URL, by the reader of its name's ending; a folder as DICOM.

    The header is checked before any voxel is read: no more than `max_voxels` may be declared. Raises
    InputError with the file's name and the reason.
    """
    if dicom.is_series(url):
        return _series(url, max_voxels)
    name = posixpath.basename(url)
    for ending, reader in _READERS.items():
        if name.endswith(ending):
            return reader(url, max_voxels)
    raise InputError(f"{name}: no reader for this kind of file; known are {', '.join(_READERS)}")


def declared_voxels(url: str) -> int | None:
    """Voxels, over all channels, that the header of a NIfTI file declares; None for files of other kinds.

    Raises InputError as `read_source` does for a header that cannot be read.
    """
    if dicom.is_series(url) or not url.endswith((".nii", ".nii.gz")):
        return None
    from hssl_dist.imaging import nifti

    return nifti.declared_voxels(url)


@contextmanager
def reading(name: str, missing: str = "there is no such file; it belongs to the case") -> Iterator[None]:
    """Inside, a file that is not there or cannot be read becomes an InputError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{name}: {missing}") from None
    except (IsADirectoryError, PermissionError) as error:
        raise InputError(f"{name}: cannot be read: {error.strerror or error}") from None


def size_of(stream: ByteStream) -> int:
    """The bytes of an open file, which is at its start before and afterwards."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0, os.SEEK_SET)
    return size


def check_length(found: int, wanted: int, name: str, *, compressed: bool) -> None:
    """Raise InputError if a file of `found` bytes cannot hold the `wanted` ones memory is to be taken for.

    Up to 64 MiB are let pass: whether they are there is seen when they are read.
    """
    if wanted <= _TRUSTED_BYTES or found * (_MOST_INFLATED if compressed else 1) >= wanted:
        return
    kind = " compressed bytes, too few for" if compressed else " of"
    raise InputError(f"{name}: truncated: holds {found}{kind} the {wanted} bytes its header declares")


def gather(pieces: Iterable[bytes], target: memoryview, name: str) -> None:
    """Fill `target`, of bytes, with all the pieces. Raises InputError if they are fewer bytes than that, or
    more by over `SLACK_BYTES`.
    """
    wanted, found = len(target), 0
    for piece in pieces:
        used = max(0, min(len(piece), wanted - found))
        target[found : found + used] = piece[:used]
        found += len(piece)
        if found > wanted + SLACK_BYTES:
            raise InputError(f"{name}: holds more than the {wanted} bytes its header declares")
    if found < wanted:
        raise InputError(f"{name}: truncated: holds {found} of the {wanted} bytes its header declares")


def check_affine(affine: Float64[np.ndarray, "4 4"], name: str) -> None:
    """Raise InputError unless the affine's voxels have a volume, and a size and place a scan can have."""
    if not np.isfinite(affine).all():
        raise InputError(f"{name}: the affine has NaN or infinite entries")
    with np.errstate(all="ignore"):
        edges = np.linalg.norm(affine[:3, :3], axis=0)
        volume_ratio = abs(np.linalg.det(affine[:3, :3] / edges)) if edges.all() else 0.0
    if not volume_ratio >= _MIN_VOLUME_RATIO:
        raise InputError(f"{name}: the affine is singular: its voxels have no volume")
    if not _MIN_EDGE_MM <= edges.min() <= edges.max() <= _MAX_EDGE_MM:
        shown = " x ".join(f"{edge:.3g}" for edge in edges)
        raise InputError(f"{name}: the affine makes voxels of {shown} mm, which cannot be")
    if np.abs(affine[:3, 3]).max() > _MAX_ORIGIN_MM:
        raise InputError(
            f"{name}: the affine puts the volume {np.abs(affine[:3, 3]).max():.3g} mm away, which cannot be"
        )


def check_size(header: SourceHeader, name: str, max_voxels: int) -> None:
    """Raise InputError if the header declares more voxels, over all channels, than are allowed."""
    voxels = header.channels * math.prod(header.shape)
    if voxels > max_voxels:
        sizes = (*header.shape, header.channels) if header.channels > 1 else header.shape
        text = " x ".join(str(size) for size in sizes)
        raise InputError(f"{name}: the header declares {text} voxels; max_voxels allows {max_voxels}")


def _nifti(url: str, max_voxels: int) -> SourceImage:
    from hssl_dist.imaging.nifti import read_nifti

    return read_nifti(url, max_voxels)


def _nrrd(url: str, max_voxels: int) -> SourceImage:
    from hssl_dist.imaging.itk_files import read_nrrd

    return read_nrrd(url, max_voxels)


def _meta(url: str, max_voxels: int) -> SourceImage:
    from hssl_dist.imaging.itk_files import read_meta

    return read_meta(url, max_voxels)


def _series(url: str, max_voxels: int) -> SourceImage:
    from hssl_dist.imaging.itk_series import read_series

    return read_series(url, max_voxels)


def _detached(url: str, max_voxels: int) -> SourceImage:
    from hssl_dist.imaging.itk_files import refuse_detached

    return refuse_detached(url, max_voxels)


_READERS: dict[str, Callable[[str, int], SourceImage]] = {
    ".nii.gz": _nifti,
    ".nii": _nifti,
    ".nrrd": _nrrd,
    ".mha": _meta,
    ".nhdr": _detached,
    ".mhd": _detached,
}
