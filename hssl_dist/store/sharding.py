"""A shard's bytes: the inner chunks as zarr-python would encode them, at a fifth of its processor time.

zarr-python drives every chunk through its event loop and threads. The format is simple enough to write down
(Zarr v3, `sharding_indexed` with the index at the end), and the tests demand the same bytes.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Shaped

ZSTD_LEVEL = 3
"""Measured in docs/decisions.md."""

_ABSENT = 2**64 - 1


def encode_shard(
    values: Shaped[np.ndarray, "*shape"], chunk: tuple[int, ...], shard: tuple[int, ...]
) -> bytes:
    """A shard of whole chunks, each little-endian, zstd, crc32c, in Z-order, and their index.

    `values` is the part of the array the shard covers, at most of shape `shard`. A chunk that reaches beyond
    it is padded with zeros; one that lies outside is left out.
    """
    zstd = Zstd(level=ZSTD_LEVEL)
    counts = tuple(size // side for size, side in zip(shard, chunk, strict=True))
    inside = tuple(-(-size // side) for size, side in zip(values.shape, chunk, strict=True))
    index = np.full((*counts, 2), _ABSENT, dtype="<u8")
    parts: list[bytes] = []
    offset = 0
    for place in sorted(itertools.product(*map(range, inside)), key=lambda place: _morton(place, counts)):
        encoded = _with_checksum(zstd.encode(_chunk(values, place, chunk)))
        index[place] = offset, len(encoded)
        parts.append(encoded)
        offset += len(encoded)
    parts.append(_with_checksum(index.tobytes()))
    return b"".join(parts)


def shard_places(shape: tuple[int, ...], shard: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The shards of an array."""
    return itertools.product(*(range(-(-side // size)) for side, size in zip(shape, shard, strict=True)))


def box_of(place: tuple[int, ...], size: tuple[int, ...]) -> tuple[slice, ...]:
    """The voxels of the shard, or chunk, at a place of the grid."""
    return tuple(slice(at * side, (at + 1) * side) for at, side in zip(place, size, strict=True))


def _chunk(
    values: Shaped[np.ndarray, "*shape"], place: tuple[int, ...], chunk: tuple[int, ...]
) -> Shaped[np.ndarray, "*chunk"]:
    """One chunk, in one piece and padded with zeros."""
    inside = values[box_of(place, chunk)]
    if inside.shape == chunk:
        return np.ascontiguousarray(inside)
    padded: np.ndarray[Any, np.dtype[Any]] = np.zeros(chunk, dtype=values.dtype)
    padded[tuple(slice(0, side) for side in inside.shape)] = inside
    return padded


def _with_checksum(data: bytes) -> bytes:
    checksum: int = google_crc32c.value(data)
    return data + checksum.to_bytes(4, "little")


def _morton(place: tuple[int, ...], counts: tuple[int, ...]) -> int:
    """The place's rank on the Z-order curve, which keeps neighbours close; an axis has the bits it needs."""
    bits = [(count - 1).bit_length() for count in counts]
    code = position = 0
    for level in range(max(bits)):
        for coordinate, width in zip(place, bits, strict=True):
            if level < width:
                code |= (coordinate >> level & 1) << position
                position += 1
    return code
