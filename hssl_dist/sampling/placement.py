"""Where a box lies in a volume."""

from __future__ import annotations

import numpy as np

from hssl_dist.records import CaseRecord, Shape

_JITTER = 0.25  # of the box: how far off its centre a foreground voxel may be


def draw_start(record: CaseRecord, shape: Shape, foreground: float, rng: np.random.Generator) -> Shape:
    """First voxel `z y x` of a random box of the given shape.

    With probability `foreground` the box lies around a recorded foreground voxel of a class drawn evenly from
    those the case has; otherwise anywhere. A box stays inside the volume on each axis that is long enough,
    and is centred on the others.
    """
    classes = sorted(name for name, voxels in record.foreground.items() if voxels)
    free = np.asarray(record.shape) - shape
    if classes and rng.random() < foreground:
        voxels = record.foreground[classes[rng.integers(len(classes))]]
        voxel = np.asarray(voxels[rng.integers(len(voxels))])
        reach = (_JITTER * np.asarray(shape)).astype(int)
        start = voxel - np.asarray(shape) // 2 + rng.integers(-reach, reach, endpoint=True)
    else:
        start = rng.integers(0, np.maximum(free, 0), endpoint=True)
    z, y, x = np.where(free < 0, free // 2, np.clip(start, 0, np.maximum(free, 0))).tolist()
    return z, y, x
