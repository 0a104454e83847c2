"""Where a box lies in a volume."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hssl_dist.records import TISSUE, CaseRecord, Shape

_JITTER = 0.25  # of the box: how far off its centre a foreground voxel may be


def annotated(record: CaseRecord) -> list[str]:
    """The annotated classes of a case, as its record names them; tissue is none."""
    return sorted(set(record.foreground) - {TISSUE})


def draw_start(
    record: CaseRecord, shape: Shape, foreground: float, names: Sequence[str], rng: np.random.Generator
) -> Shape:
    """First voxel `z y x` of a random box of the given shape.

    With probability `foreground` the box lies around a recorded voxel of one of `names`, drawn evenly from
    those the case has; otherwise anywhere. A box stays inside the volume on each axis that is long enough,
    and is centred on the others.
    """
    classes = [name for name in names if record.foreground.get(name)]
    free = [side - size for side, size in zip(record.shape, shape, strict=True)]
    last = [max(0, room) for room in free]
    if classes and rng.random() < foreground:
        voxels = record.foreground[classes[rng.integers(len(classes))]]
        voxel = voxels[rng.integers(len(voxels))]
        reach = [int(_JITTER * size) for size in shape]
        jitter = rng.integers([-far for far in reach], reach, endpoint=True).tolist()
        around = zip(voxel, shape, jitter, strict=True)
        start = [place - size // 2 + shift for place, size, shift in around]
    else:
        start = rng.integers(0, last, endpoint=True).tolist()
    z, y, x = (
        room // 2 if room < 0 else min(max(place, 0), end)
        for place, room, end in zip(start, free, last, strict=True)
    )
    return z, y, x
