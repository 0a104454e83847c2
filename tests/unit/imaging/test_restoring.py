"""Scores on the source's grid: where nothing is resampled exact, elsewhere what dense interpolation gives."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from hssl_dist.imaging import restore_scores
from hssl_dist.imaging.resampling import resampled_grid
from hssl_dist.records import Geometry
from tests.restoring import restore

AFFINE = np.array([[0, -1.2, 0, 5], [-0.8, 0, 0, 7], [0, 0, 2.5, 9], [0, 0, 0, 1]])


def geometry_of(crop, spacing_mm, target_mm, affine=AFFINE, margin=(1, 2, 3)) -> Geometry:
    shape, spacing = resampled_grid(crop, spacing_mm, target_mm)
    oriented = tuple(size + 2 * extra for size, extra in zip(crop, margin, strict=True))
    z, y, x = oriented
    return Geometry(
        original_shape=(y, x, z),  # the affine exchanges the first two axes
        original_affine=tuple(map(tuple, affine.tolist())),
        oriented_shape=oriented,
        oriented_spacing_mm=spacing_mm,
        crop_start=margin,
        crop_stop=tuple(start + size for start, size in zip(margin, crop, strict=True)),
        shape=shape,
        spacing_mm=spacing,
    )


def slabs_of(scores, *heights):
    """The scores in slabs of these heights, the rest in one."""
    start = 0
    for height in (*heights, scores.shape[1]):
        if start < scores.shape[1]:
            yield scores[:, start : start + height]
        start += height


def smooth(shape, classes=3, seed=0):
    noise = np.random.default_rng(seed).standard_normal((classes, *shape))
    return ndimage.gaussian_filter(noise, (0, 1.0, 1.5, 1.5)).astype(np.float32)


@pytest.mark.parametrize("heights", [(), (1, 1, 1), (4, 3)])
def test_without_resampling_the_highest_score_wins_where_it_was(heights):
    geometry = geometry_of((9, 10, 11), (2.5, 0.8, 1.2), (2.5, 0.8, 1.2))
    scores = smooth(geometry.shape)
    label = restore_scores(slabs_of(scores, *heights), geometry)
    np.testing.assert_array_equal(label, restore(scores.argmax(axis=0).astype(np.uint8), geometry))
    assert label.shape == geometry.original_shape
    assert set(np.unique(label)) == {0, 1, 2}


@pytest.mark.parametrize("target_mm", [(2.5, 1.5, 1.5), (5.0, 1.6, 2.0), (1.0, 0.8, 1.2), (1.0, 0.5, 0.5)])
def test_with_resampling_it_is_linear_interpolation_of_each_class(target_mm):
    geometry = geometry_of((14, 24, 26), (2.5, 0.8, 1.2), target_mm)
    scores = smooth(geometry.shape)
    grid = [
        ((np.arange(size) + 0.5 - size / 2) * old / new + stored / 2 - 0.5).clip(0, stored - 1)
        for size, old, new, stored in zip(
            (14, 24, 26), geometry.oriented_spacing_mm, geometry.spacing_mm, geometry.shape, strict=True
        )
    ]
    dense = np.stack(
        [
            ndimage.map_coordinates(one.astype(np.float64), np.meshgrid(*grid, indexing="ij"), order=1)
            for one in scores
        ]
    )
    top = np.sort(dense, axis=0)
    clear = top[-1] - top[-2] > 1e-5
    assert clear.mean() > 0.999
    label = restore_scores(slabs_of(scores, 3, 1, 2), geometry)
    back = label.transpose(2, 0, 1)[:, ::-1, ::-1]  # by the affine: S, then -R, then -A
    crop = back[1:-1].transpose(0, 1, 2)
    expected = dense.argmax(axis=0)
    inside = crop[:, 2:-2, 3:-3]
    assert inside.shape == expected.shape
    np.testing.assert_array_equal(inside[clear], expected[clear])
    outside = back.copy()
    outside[1:-1, 2:-2, 3:-3] = 0
    assert not outside.any()


def test_what_is_not_needed_of_the_scores_is_not_held():
    """Never more slices than are taken at once, four of this size, whatever the volume's depth."""
    geometry = geometry_of((60, 128, 128), (1.0, 1.0, 1.0), (1.0, 1.3, 1.3), np.diag([1.0, 1.0, 1.0, 1.0]))
    scores = smooth(geometry.shape, 2)
    alive, most = 0, 0

    class Plane(np.ndarray):
        def __del__(self):
            nonlocal alive
            alive -= self.base is None

    def one_by_one():
        nonlocal alive, most
        for z in range(scores.shape[1]):
            plane = Plane((2, 1, *scores.shape[2:]), dtype=np.float32)
            plane[...] = scores[:, z : z + 1]
            alive += 1
            most = max(most, alive)
            yield plane

    restore_scores(one_by_one(), geometry)
    assert most <= 6
