"""Keeping only the largest connected component of a predicted label.

With few labels a network also finds structures far from where they are, and most organs are one piece.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import numpy as np
from jaxtyping import Bool, UInt8
from scipy import ndimage

from hssl_dist.records import KeepLargest
from hssl_dist.segmentation.metrics import DiceMeans

WAYS: tuple[KeepLargest, ...] = get_args(KeepLargest)

MeansByWay = Mapping[KeepLargest, DiceMeans]
"""Scores of the same predictions treated in each of some ways, `never` among them."""

_TOUCHING = np.ones((3, 3, 3), dtype=bool)  # by a face, an edge or a corner


def keep_largest(label: UInt8[np.ndarray, "z y x"], of: KeepLargest) -> UInt8[np.ndarray, "z y x"]:
    """`label`, 0 outside the largest component; `label` itself for `never`. Of equals the first stays."""
    if of == "never":
        return label
    parts = (label > 0).view(np.uint8) if of == "foreground" else label
    result = np.zeros_like(label)
    for value, box in enumerate(ndimage.find_objects(parts), start=1):
        if box is not None:
            np.copyto(result[box], label[box], where=_largest(parts[box] == value))
    return result


def best_way(means: MeansByWay) -> KeepLargest:
    """The way with the highest mean; the earlier in `WAYS` of equals, the first where none has a mean."""
    return max((way for way in WAYS if way in means), key=lambda way: means[way].overall)


def _largest(mask: Bool[np.ndarray, "z y x"]) -> Bool[np.ndarray, "z y x"]:
    """The largest component of a mask that is not empty."""
    numbers, count = ndimage.label(mask, _TOUCHING)
    sizes = np.zeros(count + 1, dtype=np.int64)
    for plane in numbers:  # bincount makes eight bytes of every voxel
        sizes += np.bincount(plane.ravel(), minlength=count + 1)
    largest: Bool[np.ndarray, "z y x"] = numbers == 1 + int(np.argmax(sizes[1:]))
    return largest
