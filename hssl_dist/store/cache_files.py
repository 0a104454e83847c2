"""A decoded volume as a file: the stored numbers, C-contiguous, then a footer that tells a whole file.

numbers | description (JSON: key, dtype, shape, scaling) | tail (lengths, checksums, magic)

The footer is written last. Checksums are CRC-32C, which processors compute at several gigabytes a second.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import struct
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from hssl_dist.records import Scaling
from hssl_dist.store.quantising import Stored

if TYPE_CHECKING:
    from pathlib import Path

_TAIL = struct.Struct("<IIII8s")  # description's bytes and checksum, numbers' checksum, 0, magic
_MAGIC = b"hsslvol1"
_CHECKED_BYTES = 8 << 20  # at a time; Python's lock is held meanwhile
_ZEROS_BYTES = 8 << 20  # at a time


class DamagedError(Exception):
    """A cache file that is not whole, or has other bytes than were written."""


@dataclass(frozen=True, slots=True)
class VolumeForm:
    """What a volume's numbers are: type, shape and what they mean."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    scaling: Scaling

    @property
    def values_bytes(self) -> int:
        """Bytes of the numbers."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def file_bytes(self, key: str) -> int:
        """Bytes of the whole file."""
        return self.values_bytes + len(self._description(key)) + _TAIL.size

    def footer(self, key: str, values: Stored) -> bytes:
        """What follows the numbers."""
        text = self._description(key)
        return text + _TAIL.pack(len(text), google_crc32c.value(text), _checksum(values), 0, _MAGIC)

    def _description(self, key: str) -> bytes:
        return json.dumps(
            {
                "key": key,
                "dtype": self.dtype.str,
                "shape": self.shape,
                "scale_factor": self.scaling.scale_factor,
                "add_offset": self.scaling.add_offset,
            }
        ).encode()


@dataclass(frozen=True, slots=True)
class CachedVolume:
    """A mapped, read-only volume, what its numbers mean, and the inode it is mapped from."""

    values: Stored
    scaling: Scaling
    inode: int


def map_for_writing(descriptor: int, form: VolumeForm) -> Stored:
    """The numbers of a file that is to be filled; the file must have its full length and its blocks.

    Zeros are written first: the page cache then holds them in large folios, which faults map whole. Faults of
    a mapping that has nothing in the page cache cost more than decoding does (docs/decisions.md).
    """
    for start in range(0, form.values_bytes, _ZEROS_BYTES):
        os.pwrite(descriptor, bytes(min(_ZEROS_BYTES, form.values_bytes - start)), start)
    memory = mmap.mmap(descriptor, form.values_bytes)
    return np.frombuffer(memory, dtype=form.dtype).reshape(form.shape)


def map_volume(path: Path, key: str) -> CachedVolume:
    """Map a file after comparing all of it with its checksums.

    Raises FileNotFoundError if there is none and DamagedError if it is not whole.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        status = os.fstat(descriptor)
        form, checksum = _read_footer(descriptor, status.st_size, key)
        values = _map(descriptor, form)
    finally:
        os.close(descriptor)
    if _checksum(values) != checksum:
        raise DamagedError("its numbers do not have the recorded checksum")
    return CachedVolume(values, form.scaling, status.st_ino)


def _read_footer(descriptor: int, size: int, key: str) -> tuple[VolumeForm, int]:
    tail = os.pread(descriptor, _TAIL.size, size - _TAIL.size) if size >= _TAIL.size else b""
    if len(tail) < _TAIL.size or tail[-len(_MAGIC) :] != _MAGIC:
        raise DamagedError("it has no footer")
    length, text_checksum, checksum, _, _ = _TAIL.unpack(tail)
    start = size - _TAIL.size - length
    text = os.pread(descriptor, length, start) if start >= 0 else b""
    if len(text) < length or google_crc32c.value(text) != text_checksum:
        raise DamagedError("its description does not have the recorded checksum")
    said = json.loads(text)
    scaling = Scaling(said["scale_factor"], said["add_offset"])
    form = VolumeForm(np.dtype(said["dtype"]), tuple(said["shape"]), scaling)
    if said["key"] != key or form.values_bytes != start:
        raise DamagedError("it is another volume's, or has another length")
    return form, checksum


def _checksum(values: Stored) -> int:
    flat = values.reshape(-1).view(np.uint8)
    checksum = 0
    for start in range(0, flat.size, _CHECKED_BYTES):
        checksum = google_crc32c.extend(checksum, flat[start : start + _CHECKED_BYTES])
    return int(checksum)


def _map(descriptor: int, form: VolumeForm) -> Stored:
    """Map a file's numbers read-only. Python's own mmap would keep a descriptor open for each volume."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    address = library.mmap(None, form.values_bytes, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    memory = (ctypes.c_ubyte * form.values_bytes).from_address(address)
    weakref.finalize(memory, library.munmap, address, form.values_bytes).atexit = False
    values: Stored = np.frombuffer(memoryview(memory), dtype=form.dtype).reshape(form.shape)
    values.flags.writeable = False
    return values
