"""Stored numbers into a row of a batch: padded in place and, if values are wanted, converted and scaled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hssl_dist.store.backend import Box
from hssl_dist.store.quantising import Stored

if TYPE_CHECKING:
    from hssl_dist.records import Region, Scaling, Shape

_NOTHING = (slice(0, 0),) * 3


def overlap(shape: Shape, region: Region) -> tuple[Box, Box]:
    """The part of a region inside the volume, in the volume's and in the region's own coordinates; empty
    boxes if there is none.
    """
    inside, target = [], []
    for side, start, size in zip(shape, region.start, region.shape, strict=True):
        low, high = max(0, start), min(side, start + size)
        if low >= high:
            return _NOTHING, _NOTHING
        inside.append(slice(low, high))
        target.append(slice(low - start, high - start))
    return tuple(inside), tuple(target)


def nearest_number(value: float, dtype: np.dtype[Any], scaling: Scaling) -> Any:
    """The stored number whose value is nearest."""
    number = (value - scaling.add_offset) / scaling.scale_factor
    bounds: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    if dtype.kind in "iu":
        number = round(number)
    return dtype.type(min(max(number, float(bounds.min)), float(bounds.max)))


def pad_around(row: Stored, target: Box, value: Any) -> Stored:
    """Set all of `row` outside `target` to a value, touching nothing else; returns the inside."""
    for axis, part in enumerate(target):
        before = (slice(None),) * axis
        if part.start > 0:
            row[(*before, slice(0, part.start))] = value
        if part.stop < row.shape[axis]:
            row[(*before, slice(part.stop, None))] = value
        row = row[(*before, part)]
    return row


def write_values(stored: Stored, scaling: Scaling, out: Stored) -> None:
    """Write `number * scale_factor + add_offset`, in float32, of stored numbers into `out`, of their shape.

    Runs without Python's lock but for moments.
    """
    scale, offset = np.float32(scaling.scale_factor), np.float32(scaling.add_offset)
    # Adding 0 changes but the sign of a zero, and integers times a positive scale give no negative zero.
    exact = offset == 0 and scale > 0 and stored.dtype.kind in "iu"
    np.copyto(out, stored)
    np.multiply(out, scale, out=out)
    if not exact:
        np.add(out, offset, out=out)
