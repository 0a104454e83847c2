"""The way back of labels themselves: what `restore_scores` is held against, and round trips are made with."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from hssl_dist.imaging.orientation import from_ras
from hssl_dist.imaging.resampling import resample_label
from hssl_dist.records import Geometry


def restore(label: UInt8[np.ndarray, "z y x"], geometry: Geometry) -> UInt8[np.ndarray, "i j k"]:
    """A label of the stored grid on the source file's grid, shape and axes exactly; 0 outside the crop."""
    assert label.shape == geometry.shape
    box = tuple(slice(a, b) for a, b in zip(geometry.crop_start, geometry.crop_stop, strict=True))
    oriented = np.zeros(geometry.oriented_shape, dtype=np.uint8)
    shape = oriented[box].shape
    oriented[box] = resample_label(label, geometry.spacing_mm, shape, geometry.oriented_spacing_mm)
    return np.ascontiguousarray(from_ras(oriented, np.asarray(geometry.original_affine)))
