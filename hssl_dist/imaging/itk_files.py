"""NRRD and MetaImage files: ITK reads the geometry from a cleaned header, the voxels are decoded here.

A header may name the patient. Of its lines only those listed below are looked at, and ITK sees no other, so
no header can lead it to another file. Voxels are not left to ITK, which takes what it cannot decompress of a
MetaImage for zeros.
"""

from __future__ import annotations

import math
import posixpath
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Shaped

from hssl_dist import files
from hssl_dist.errors import InputError
from hssl_dist.imaging.itk import header_of
from hssl_dist.imaging.source import (
    ByteStream,
    SourceHeader,
    SourceImage,
    check_length,
    gather,
    reading,
    size_of,
)

_NRRD_GEOMETRY = (
    "type",
    "dimension",
    "sizes",
    "kinds",
    "space",
    "space dimension",
    "space directions",
    "space origin",
    "spacings",
)
_NRRD_NUMBERS = ("space directions", "space origin", "spacings")
_NRRD_ENCODING = ("space units", "encoding", "endian", "data file", "line skip", "byte skip")
_NRRD_SYNONYMS = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}
_NRRD_SPACES = (
    "left-posterior-superior",
    "right-anterior-superior",
    "left-anterior-superior",
    "lps",
    "ras",
    "las",
)
_META_GEOMETRY = (
    "ObjectType",
    "NDims",
    "TransformMatrix",
    "Orientation",
    "Rotation",
    "Offset",
    "Origin",
    "Position",
    "ElementSpacing",
    "ElementSize",
    "ElementNumberOfChannels",
    "DimSize",
    "ElementType",
)
_META_NUMBERS = (
    "TransformMatrix",
    "Orientation",
    "Rotation",
    "Offset",
    "Origin",
    "Position",
    "ElementSpacing",
)
_META_ENCODING = (
    "DistanceUnits",
    "BinaryData",
    "BinaryDataByteOrderMSB",
    "ElementByteOrderMSB",
    "CompressedData",
    "HeaderSize",
    "ElementDataFile",
)
_MAX_HEADER_BYTES = 1 << 22  # Slicer describes every segment in it
_HEAD_BYTES, _BLOCK_BYTES = 1 << 16, 1 << 20
_GZIP, _ZLIB_OR_GZIP = 31, 47
"""What zlib calls `wbits`."""


@dataclass(frozen=True, slots=True)
class _Head:
    """A header as far as it may be looked at: what ITK is shown, and how the voxels after it are coded."""

    text: bytes
    big_endian: bool
    wbits: int | None


def read_nrrd(url: str, max_voxels: int) -> SourceImage:
    """Read a `.nrrd` file with its voxels in it, raw or gzipped, from a path or URL.

    The header is checked before any voxel is read, compressed data to its end, its checksum included. No more
    than the declared voxels and 1 MiB are held. Raises InputError with the file's name and the reason.
    """
    return _read(url, ".nrrd", _nrrd_head, max_voxels)


def read_meta(url: str, max_voxels: int) -> SourceImage:
    """Read a MetaImage (`.mha`) with its voxels in it, raw or compressed; as strict as `read_nrrd`."""
    return _read(url, ".mha", _meta_head, max_voxels)


def refuse_detached(url: str, max_voxels: int) -> SourceImage:  # noqa: ARG001
    """Refuse a header without its voxels (`.nhdr`, `.mhd`): it names other files, which may be anywhere."""
    name = posixpath.basename(url)
    whole = ".nrrd" if name.endswith(".nhdr") else ".mha"
    raise InputError(f"{name}: a header without its voxels; convert it to {whole}")


def _read(url: str, ending: str, head_of: Callable[[_Input, str], _Head], max_voxels: int) -> SourceImage:
    name = posixpath.basename(url)
    with reading(name), files.open_read(url) as stream:
        source = _Input(stream, name)
        head = head_of(source, name)
        header = header_of(head.text, ending, name, max_voxels)
        if head.big_endian:
            header = replace(header, dtype=header.dtype.newbyteorder(">"))
        return SourceImage(name, header, _voxels(source, header, head.wbits, name))


# ------------------------------------------------------------------------------------------------------ NRRD


def _nrrd_head(source: _Input, name: str) -> _Head:
    lines = source.lines()
    magic = next(lines)
    if not re.fullmatch(r"NRRD000[1-5]", magic):
        raise InputError(f"{name}: not an NRRD file; convert it to .nrrd or .nii.gz")
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            break
        field, colon, value = line.partition(": ")
        key = _NRRD_SYNONYMS.get(field.lower(), field.lower())
        if colon and key in _NRRD_GEOMETRY + _NRRD_ENCODING:
            _put(fields, key, value.strip(), name)
    if "data file" in fields:
        raise InputError(f"{name}: a header without its voxels; convert it to .nrrd")
    if any(fields.get(skip, "0") != "0" for skip in ("line skip", "byte skip")):
        raise InputError(f"{name}: the header skips what stands before the voxels; convert it to .nii.gz")
    _check_sizes(fields, "dimension", "sizes", name)
    _check_numbers(fields, _NRRD_NUMBERS, name)
    _check_units(re.findall(r'"(.*?)"', fields.get("space units", "")), name)
    if fields.get("space", "LPS").lower() not in _NRRD_SPACES:
        raise InputError(f"{name}: unknown space; {', '.join(_NRRD_SPACES[:3])} are known")
    compressed = _choice(fields, "encoding", {"raw": False, "gzip": True, "gz": True}, name)
    big_endian = _choice(fields, "endian", {"little": False, "big": True}, name, "little")
    shown = [f"{key}: {fields[key]}" for key in _NRRD_GEOMETRY if key in fields]
    text = "\n".join([magic, *shown, "encoding: raw", "endian: little", "", ""])
    return _Head(text.encode("latin-1"), big_endian, _GZIP if compressed else None)


# ------------------------------------------------------------------------------------------------- MetaImage


def _meta_head(source: _Input, name: str) -> _Head:
    fields: dict[str, str] = {}
    for line in source.lines():
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            raise InputError(f"{name}: not a MetaImage; convert it to .mha or .nii.gz")
        if key in _META_GEOMETRY + _META_ENCODING:
            _put(fields, key, value, name)
        if key == "ElementDataFile":
            break
    if fields["ElementDataFile"].upper() != "LOCAL":
        raise InputError(f"{name}: a header without its voxels; convert it to .mha")
    if fields.get("HeaderSize", "0") != "0":
        raise InputError(f"{name}: the header skips what stands before the voxels; convert it to .nii.gz")
    _check_sizes(fields, "NDims", "DimSize", name)
    _check_numbers(fields, _META_NUMBERS, name)
    _check_units([fields.get("DistanceUnits", "?")], name)
    truth = {"true": True, "false": False}
    if not _choice(fields, "BinaryData", truth, name, "False"):
        raise InputError(f"{name}: the voxels are written as text; convert it to .nii.gz")
    compressed = _choice(fields, "CompressedData", truth, name, "False")
    orders = [_choice(fields, key, truth, name, "False") for key in _META_ENCODING if "ByteOrder" in key]
    shown = [f"{key} = {fields[key]}" for key in _META_GEOMETRY if key in fields]
    text = "\n".join([*shown, "BinaryData = True", "ElementDataFile = LOCAL", ""])
    return _Head(text.encode("latin-1"), any(orders), _ZLIB_OR_GZIP if compressed else None)


# ---------------------------------------------------------------------------------------------------- shared


class _Input:
    """A file read once from its start: lines first, then bytes."""

    def __init__(self, stream: ByteStream, name: str) -> None:
        self._stream, self._name = stream, name
        self._size_bytes = size_of(stream)
        self._ahead = b""
        self._line_bytes = 0

    def lines(self) -> Iterator[str]:
        """Lines without their ends; the header must end within 4 MiB. Raises InputError."""
        while True:
            line, newline, rest = self._ahead.partition(b"\n")
            if newline:
                self._ahead = rest
                self._line_bytes += len(line) + 1
                yield line.decode("latin-1").removesuffix("\r")
            elif self._line_bytes + len(self._ahead) > _MAX_HEADER_BYTES:
                raise InputError(f"{self._name}: no end of the header within {_MAX_HEADER_BYTES} bytes")
            elif more := self._stream.read(_HEAD_BYTES):
                self._ahead += more
            else:
                found = "truncated: ends within its header" if self._line_bytes else "the file is empty"
                raise InputError(f"{self._name}: {found}")

    @property
    def left_bytes(self) -> int:
        """Bytes after the lines."""
        return self._size_bytes - self._line_bytes

    def read(self, size: int) -> bytes:
        """Up to `size` bytes after the last line; empty at the end."""
        if not self._ahead:
            return self._stream.read(size)
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        return data


def _put(fields: dict[str, str], key: str, value: str, name: str) -> None:
    if key in fields:
        raise InputError(f"{name}: the header has {key!r} twice")
    fields[key] = value


def _check_sizes(fields: Mapping[str, str], dimensions: str, sizes: str, name: str) -> None:
    """Raise InputError unless there are three positive sizes: ITK takes -5 for 4294967291."""
    found = fields.get(sizes, "").split()
    if fields.get(dimensions) != "3" or len(found) != 3:
        declared = f"{fields.get(dimensions, 'no')[:8]} dimensions, {len(found)} sizes"
        raise InputError(f"{name}: the header declares {declared}; 3 are needed, with one number a voxel")
    if not all(re.fullmatch(r"0*[1-9][0-9]{0,17}", size) for size in found):
        raise InputError(f"{name}: the header declares {' x '.join(found)[:60]}; every size must be positive")


def _check_numbers(fields: Mapping[str, str], keys: tuple[str, ...], name: str) -> None:
    """Raise InputError for what is no finite number in a geometry: ITK takes NaN for a missing entry."""
    for key in keys:
        for word in re.findall(r"[^\s(),]+", fields.get(key, "")):
            if not _is_finite(word):
                raise InputError(f"{name}: the header's {key!r} has an entry that is no finite number")


def _check_units(units: list[str], name: str) -> None:
    """Raise InputError for lengths in another unit than mm; what states none (`?` or empty) is in mm, too."""
    if not {unit.lower() for unit in units} <= {"mm", "millimeter", "millimeters", "?", ""}:
        raise InputError(f"{name}: the header gives lengths in another unit; convert it to millimetres")


def _is_finite(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _choice(
    fields: Mapping[str, str], key: str, values: Mapping[str, bool], name: str, default: str = ""
) -> bool:
    """What a field of few possible values means. Raises InputError for any other value."""
    value = fields.get(key, default).lower()
    if value not in values:
        raise InputError(f"{name}: the header's {key!r} must be one of: {', '.join(values)}")
    return values[value]


def _voxels(
    source: _Input, header: SourceHeader, wbits: int | None, name: str
) -> Shaped[np.ndarray, "1 k j i"]:
    """The voxels; exactly as many bytes as the header declares, but for padding after them."""
    wanted = math.prod(header.shape) * header.dtype.itemsize
    check_length(source.left_bytes, wanted, name, compressed=wbits is not None)
    raw = np.empty((1, *reversed(header.shape)), dtype=header.dtype)
    blocks = _raw_blocks(source) if wbits is None else _decompressed_blocks(source, wbits, name)
    gather(blocks, raw.reshape(-1).view(np.uint8).data, name)
    return raw


def _raw_blocks(source: _Input) -> Iterator[bytes]:
    while block := source.read(_BLOCK_BYTES):
        yield block


def _decompressed_blocks(source: _Input, wbits: int, name: str) -> Iterator[bytes]:
    """What a compressed stream holds, up to 1 MiB at a time; its checksum is verified."""
    member = zlib.decompressobj(wbits)
    try:
        while not member.eof:
            data = member.unconsumed_tail or source.read(_BLOCK_BYTES)
            if not data:
                raise InputError(f"{name}: truncated: the compressed voxels end before their checksum")
            yield member.decompress(data, _BLOCK_BYTES)
    except zlib.error as error:
        raise InputError(f"{name}: corrupt compressed voxels: {error}") from None
    after = len(member.unused_data.lstrip(b"\0")) + sum(
        len(block.lstrip(b"\0")) for block in _raw_blocks(source)
    )
    if after:
        raise InputError(f"{name}: {after} bytes after the end of the compressed voxels")
