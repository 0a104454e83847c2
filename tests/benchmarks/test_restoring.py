"""The compared ways back to the source's grid: alike where nothing is resampled, near elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.restoring import WAYS
from hssl_dist.records import Geometry


def geometry_of(spacing_mm: tuple[float, float, float], shape: tuple[int, int, int]) -> Geometry:
    return Geometry(
        original_shape=(24, 20, 12),
        original_affine=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)),
        oriented_shape=(12, 20, 24),
        oriented_spacing_mm=(1.0, 1.0, 1.0),
        crop_start=(1, 2, 2),
        crop_stop=(11, 18, 22),
        shape=shape,
        spacing_mm=spacing_mm,
    )


def balls(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Logits of a background and of two balls, in mm around the middle of the volume."""
    sides = zip(shape, spacing_mm, strict=True)
    z, y, x = np.meshgrid(*((np.arange(n) + 0.5 - n / 2) * mm for n, mm in sides), indexing="ij")
    ones = [4.0 - np.sqrt(z**2 + y**2 + (x - centre) ** 2) for centre in (-4.5, 4.5)]
    return np.stack((np.zeros(shape), *ones)).astype(np.float32)


@pytest.mark.parametrize("way", WAYS)
def test_ways_agree_without_resampling(way: str) -> None:
    geometry = geometry_of((1.0, 1.0, 1.0), (10, 16, 20))
    label = WAYS[way](balls(geometry.shape, geometry.spacing_mm), geometry)
    expected = np.zeros(geometry.original_shape, np.uint8)
    expected[2:22, 2:18, 1:11] = balls(geometry.shape, geometry.spacing_mm).argmax(axis=0).T
    np.testing.assert_array_equal(label, expected)


@pytest.mark.parametrize("way", WAYS)
def test_ways_find_what_is_there_with_resampling(way: str) -> None:
    geometry = geometry_of((2.0, 1.6, 1.6), (5, 10, 12))
    label = WAYS[way](balls(geometry.shape, geometry.spacing_mm), geometry)
    expected = np.zeros(geometry.original_shape, np.uint8)
    expected[2:22, 2:18, 1:11] = balls((10, 16, 20), (1.0, 1.0, 1.0)).argmax(axis=0).T
    assert (label == expected).mean() > 0.93
    assert set(np.unique(label)) == {0, 1, 2}
