"""Volumes a few slices at a time: enough of them to outweigh a call, few enough to stay in a core's cache."""

from __future__ import annotations

import math
from collections.abc import Iterator

SLAB_VOXELS = 1 << 16


def slabs(shape: tuple[int, ...], start: int = 0, slab_voxels: int = SLAB_VOXELS) -> Iterator[slice]:
    """The slices of a volume `z y x`, from `start` on, in runs of about `slab_voxels`, of one at least."""
    height = max(1, slab_voxels // math.prod(shape[1:]))
    for first in range(start, shape[0], height):
        yield slice(first, min(first + height, shape[0]))
