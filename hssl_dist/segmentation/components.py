"""Keeping only the largest connected component of a predicted label.

With few labels a network also finds structures far from where they are, and most organs are one piece.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt8
from scipy import ndimage

from hssl_dist.segmentation.metrics import DiceMeans

KeepLargest = Literal["never", "foreground", "class"]
"""Of the `foreground`, all classes together, of each `class`, or `never`: all that is found stays."""

WAYS: tuple[KeepLargest, ...] = ("never", "foreground", "class")

_TOUCHING = np.ones((3, 3, 3), dtype=bool)  # by a face, an edge or a corner


def keep_largest(label: UInt8[np.ndarray, "z y x"], of: KeepLargest) -> UInt8[np.ndarray, "z y x"]:
    """`label`, 0 outside the largest component; `label` itself for `never`. Of equals the first stays."""
    if of == "never":
        return label
    if of == "foreground":
        return np.where(_largest(label > 0), label, np.uint8(0))
    result = np.zeros_like(label)
    for value in np.unique(label[label > 0]):
        result[_largest(label == value)] = value
    return result


def best_way(means: Mapping[KeepLargest, DiceMeans]) -> KeepLargest:
    """The way with the highest mean; the earlier in `WAYS` of equals, `never` where nothing has a mean."""
    best: KeepLargest = "never"
    for way in WAYS:
        if way in means and means[way].overall > means[best].overall:
            best = way
    return best


def _largest(mask: Bool[np.ndarray, "z y x"]) -> Bool[np.ndarray, "z y x"]:
    """The largest component of a mask, looked for in the mask's bounding box; nothing of nothing."""
    result = np.zeros_like(mask)
    box = ndimage.find_objects(mask.view(np.uint8), 1)[0]
    if box is not None:
        numbers, count = ndimage.label(mask[box], _TOUCHING)
        sizes = np.bincount(numbers.ravel(), minlength=count + 1)
        result[box] = numbers == 1 + int(np.argmax(sizes[1:]))
    return result
