"""NIfTI files as bytes: what is read is checked first, and no more is read than the header declares.

Only geometry and voxels are taken from a file: `descrip`, `aux_file`, `db_name` and extensions may identify
the patient and are never looked at. nibabel parses headers and writes files; voxels are decoded here, because
nibabel accepts truncated data, wrong checksums and any size.
"""

from __future__ import annotations

import gzip
import math
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from isal import isal_zlib
from jaxtyping import Float64, Shaped
from nibabel.spatialimages import HeaderDataError

from hssl_dist import files
from hssl_dist.errors import InputError
from hssl_dist.imaging.source import (
    SLACK_BYTES,
    ByteStream,
    SourceHeader,
    SourceImage,
    check_affine,
    check_length,
    check_size,
    gather,
    reading,
    size_of,
)
from hssl_dist.records import Shape

_GZIP_ERROR: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # its stubs say "an instance"
_GZIP_MAGIC = b"\x1f\x8b"
_HEAD_BYTES = 1 << 16
_PIECE_BYTES = 1 << 18
_FORMATS: tuple[tuple[Any, int, bytes], ...] = (
    (nibabel.Nifti1Header, 348, b"n+1"),
    (nibabel.Nifti2Header, 540, b"n+2"),
)
_MAX_OFFSET_BYTES = 1 << 26
"""Header extensions beyond 64 MiB are no extensions."""
_OTHER_UNITS = {1: "metres", 3: "micrometres"}
"""Of `xyzt_units`; 2 is the millimetre, and files that state no unit are in millimetres, too."""


def read_nifti(url: str, max_voxels: int) -> SourceImage:
    """Read a `.nii` or `.nii.gz` file from a path or URL.

    The header is checked before any voxel is read, and a gzip stream is read to its end, so its checksum is
    verified. Memory: the declared size and a few pieces of the file. Raises InputError with the file's name
    and the reason.
    """
    name = posixpath.basename(url)
    with reading(name), files.open_read(url) as stream:
        return _read(stream, name, max_voxels)


def read_fields(url: str) -> Any:
    """nibabel's header object of a `.nii` or `.nii.gz`, unchecked, as it stands in the file.

    Nothing but the fields of geometry may be taken from it. Raises InputError with the file's name.
    """
    name = posixpath.basename(url)
    with reading(name), files.open_read(url) as stream:
        head = stream.read(_HEAD_BYTES)
    return _header_fields(_start_of_gzip(head, name) if head.startswith(_GZIP_MAGIC) else head, name)


def declared_voxels(url: str) -> int:
    """Voxels, over all channels, that the header of a `.nii` or `.nii.gz` file declares.

    Reads the file's first 64 KiB. Raises InputError as `read_nifti` does.
    """
    name = posixpath.basename(url)
    with reading(name), files.open_read(url) as stream:
        header, _ = _read_header(stream.read(_HEAD_BYTES), name)
    return header.channels * math.prod(header.shape)


def write_nifti(path: Path, array_xyz: Shaped[np.ndarray, "x y z *channel"], affine: Any) -> None:
    """Write an array as `.nii` or, by the name's ending, `.nii.gz`; equal input gives equal bytes."""
    image = nibabel.Nifti1Image(array_xyz, np.asarray(affine, dtype=np.float64))
    image.header.set_xyzt_units("mm")
    data = image.to_bytes()
    files.write(str(path), gzip.compress(data, 6, mtime=0) if path.name.endswith(".gz") else data)


def _read(stream: ByteStream, name: str, max_voxels: int) -> SourceImage:
    size_bytes = size_of(stream)
    head = stream.read(_HEAD_BYTES)
    header, offset = _read_header(head, name)
    check_size(header, name, max_voxels)
    count = header.channels * math.prod(header.shape)
    end = offset + count * header.dtype.itemsize
    compressed = head.startswith(_GZIP_MAGIC)
    check_length(size_bytes, end, name, compressed=compressed)
    data = np.empty(end, dtype=np.uint8)
    pieces = _pieces(head, stream)
    if compressed:
        pieces = _unzip(_at_most(pieces, end, name), name)
    gather(pieces, data.data, name)
    raw = np.frombuffer(data, dtype=header.dtype, count=count, offset=offset)
    return SourceImage(name, header, raw.reshape((header.channels, *reversed(header.shape))))


def _read_header(head: bytes, name: str) -> tuple[SourceHeader, int]:
    """The header at the start of a file's bytes, and the position of the first voxel."""
    if not head:
        raise InputError(f"{name}: the file is empty")
    return _parse_header(_start_of_gzip(head, name) if head.startswith(_GZIP_MAGIC) else head, name)


def _start_of_gzip(head: bytes, name: str) -> bytes:
    try:
        start: bytes = isal_zlib.decompressobj(wbits=31).decompress(head, 1024)
    except _GZIP_ERROR as error:
        raise InputError(f"{name}: corrupt gzip: {error}") from None
    return start


def _pieces(head: bytes, stream: ByteStream) -> Iterator[bytes]:
    yield head
    while piece := stream.read(_PIECE_BYTES):
        yield piece


def _at_most(pieces: Iterator[bytes], end: int, name: str) -> Iterator[bytes]:
    """Pieces of a gzip file, unless it is longer than `end` bytes could ever become by deflating."""
    limit = end + SLACK_BYTES
    room = limit + limit // 1000
    for piece in pieces:
        room -= len(piece)
        if room < 0:
            raise InputError(f"{name}: holds more than the {end} bytes its header declares")
        yield piece


def _unzip(pieces: Iterator[bytes], name: str) -> Iterator[bytes]:
    """What all members of a gzip file hold, piece by piece; checks every member's checksum and length."""
    data = next(pieces)
    while data:
        if len(data) < len(_GZIP_MAGIC):
            data += next(pieces, b"")
        if not data.startswith(_GZIP_MAGIC):
            size = len(data) + sum(len(piece) for piece in pieces)
            raise InputError(f"{name}: corrupt gzip: {size} bytes after its end that are no gzip")
        member = isal_zlib.decompressobj(wbits=31)
        while not member.eof:
            data = data or next(pieces, b"")
            try:
                piece = member.decompress(data, _PIECE_BYTES)
            except _GZIP_ERROR as error:
                raise InputError(f"{name}: corrupt gzip: {error}") from None
            if not (data or piece or member.eof):
                raise InputError(f"{name}: truncated gzip: it ends before its checksum")
            data = member.unconsumed_tail
            yield piece
        data = member.unused_data.lstrip(b"\0")
        while not data and (padding := next(pieces, b"")):
            data = padding.lstrip(b"\0")


def _parse_header(block: bytes, name: str) -> tuple[SourceHeader, int]:
    """The header, and the position of the first voxel in bytes."""
    fields = _header_fields(block, name)
    shape, channels = _dimensions(fields, name)
    slope, intercept = _scaling(fields, name)
    _check_unit(fields, name)
    offset = float(fields["vox_offset"])
    if not len(fields.binaryblock) <= offset <= _MAX_OFFSET_BYTES:
        raise InputError(f"{name}: the header puts the voxels at byte {offset:g}, which cannot be")
    header = SourceHeader(
        shape=shape,
        channels=channels,
        dtype=_dtype(fields, name),
        slope=slope,
        intercept=intercept,
        affine=_affine(fields, name),
    )
    return header, int(offset)


def _header_fields(block: bytes, name: str) -> Any:
    """nibabel's header object of a single-file NIfTI-1 or NIfTI-2."""
    for kind, size, magic in _FORMATS:
        if size not in (int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big")):
            continue
        if len(block) < size:
            raise InputError(f"{name}: truncated: ends within its header, after {len(block)} bytes")
        fields = kind(block[:size], check=False)
        if fields["magic"].item()[:3] != magic:
            raise InputError(f"{name}: a header without its voxels (.hdr/.img pair); convert it to .nii.gz")
        return fields
    raise InputError(f"{name}: not a NIfTI file; convert it to .nii.gz")


def _dimensions(fields: Any, name: str) -> tuple[Shape, int]:
    dim = [int(value) for value in fields["dim"]]
    if not 1 <= dim[0] <= 7:
        raise InputError(
            f"{name}: the header declares {dim[0]} dimensions; 3, or 4 with channels, are needed"
        )
    sizes = dim[1 : dim[0] + 1]
    text = " x ".join(str(size) for size in sizes)
    if min(sizes) < 1:
        raise InputError(f"{name}: the header declares a size of {text}; every size must be positive")
    if len(sizes) < 3 or max(sizes[4:], default=1) > 1:
        raise InputError(f"{name}: {len(sizes)} dimensions ({text}); 3, or 4 with channels, are needed")
    return (sizes[0], sizes[1], sizes[2]), (sizes[3] if len(sizes) > 3 else 1)


def _scaling(fields: Any, name: str) -> tuple[float, float]:
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise InputError(f"{name}: intensity scaling (scl_slope, scl_inter) is ({slope:g}, {intercept:g})")
    return (slope, intercept) if slope != 0.0 else (1.0, 0.0)  # NIfTI: slope 0 means "not scaled"


def _check_unit(fields: Any, name: str) -> None:
    unit = _OTHER_UNITS.get(int(fields["xyzt_units"]) & 7)
    if unit is not None:
        raise InputError(f"{name}: the header gives lengths in {unit}; convert it to millimetres")


def _dtype(fields: Any, name: str) -> np.dtype[Any]:
    code = int(fields["datatype"])
    try:
        dtype: np.dtype[Any] = np.dtype(fields.get_data_dtype())
    except (HeaderDataError, KeyError):
        raise InputError(f"{name}: unknown voxel type (NIfTI datatype {code})") from None
    if dtype.kind not in "iuf":
        kind = (
            "complex" if dtype.kind == "c" else "colour (RGB)" if dtype.fields else f"NIfTI datatype {code}"
        )
        raise InputError(f"{name}: voxels are {kind}; real numbers are needed")
    return dtype


def _affine(fields: Any, name: str) -> Float64[np.ndarray, "4 4"]:
    if fields["pixdim"][0] == 0:
        fields["pixdim"][0] = 1  # NIfTI: a qfac of 0 counts as 1
    try:
        with np.errstate(all="ignore"):
            affine = np.asarray(fields.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        raise InputError(f"{name}: the header has no usable orientation: {error}") from None
    check_affine(affine, name)
    return affine
