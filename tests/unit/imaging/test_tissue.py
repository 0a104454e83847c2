"""The box of a volume's tissue is that of all its bright and labelled voxels."""

from __future__ import annotations

import numpy as np
import pytest

from hssl_dist.imaging.tissue import above, find_tissue, foreground_box
from hssl_dist.records import Geometry, Scaling, Volume

RNG = np.random.default_rng(0)


def box_of_mask(mask):
    lines = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    return tuple(int(line[0]) for line in lines), tuple(int(line[-1]) + 1 for line in lines)


def volume_of(image, label, scaling):
    shape = image.shape[1:]
    geometry = Geometry(
        original_shape=shape[::-1], original_affine=tuple(map(tuple, np.eye(4).tolist())),
        oriented_shape=shape, oriented_spacing_mm=(1, 1, 1), crop_start=(0, 0, 0), crop_stop=shape,
        shape=shape, spacing_mm=(1, 1, 1),
    )  # fmt: skip
    return Volume(image, label, (1, 1, 1), ("mr",) * len(image), geometry, scaling)


@pytest.mark.parametrize("scaling", [Scaling(), Scaling(-0.5, 3.0)])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("bright", [1, 2, 5, 40])
def test_the_box_holds_every_bright_and_labelled_voxel_and_no_more(bright, dtype, scaling):
    """A few bright voxels anywhere: the slice in the middle may have none of them, or one alone."""
    for _ in range(20):
        shape = tuple(RNG.integers(1, 12, 3).tolist())
        image = np.zeros((2, *shape), dtype)
        for channel in image:
            places = tuple(RNG.integers(0, side, bright) for side in shape)
            channel[places] = 100 if scaling.scale_factor > 0 else -100
        label = (RNG.random(shape) > 0.99).astype(np.uint8)
        volume = volume_of(image, label, scaling)
        tissues = [find_tissue(channel, scaling, "mr") for channel in image]
        mask = label > 0
        for channel, tissue in zip(image, tissues, strict=True):
            mask |= above(channel, scaling, tissue.threshold)
        assert foreground_box(volume, tissues) == box_of_mask(mask)
