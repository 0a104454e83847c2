import math

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from hssl_dist.augment.affine import (
    DRAWS,
    anisotropy,
    apply_maps,
    draw_maps,
    invert_maps,
    resample,
)
from hssl_dist.augment.seeds import uniforms
from hssl_dist.config.pretrain import ViewConfig

SOURCE, TARGET = (9, 18, 20), (6, 12, 13)


def random_maps(count, source=SOURCE, target=TARGET, config=None, probability=1.0):
    draws = uniforms(range(count), "test", DRAWS)
    return draw_maps(draws, config or ViewConfig(), source, target, probability)


def grid_of(size):
    return np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij")).reshape(3, -1)


@pytest.mark.parametrize(("mode", "order"), [("bilinear", 1), ("nearest", 0)])
def test_resampling_equals_scipy_inside_and_beyond_the_source(mode, order):
    images = torch.randn(4, 2, *SOURCE, generator=torch.Generator().manual_seed(0))
    maps = random_maps(4)

    result = resample(images, maps, TARGET, mode).numpy()

    for sample in range(4):
        places = maps[sample, :, :3] @ grid_of(TARGET) + maps[sample, :, 3:]
        for channel in range(2):
            expected = map_coordinates(images[sample, channel].numpy(), places, order=order, mode="nearest")
            np.testing.assert_allclose(result[sample, channel].ravel(), expected, atol=2e-5)


def test_without_changes_the_centre_is_cut_out_exactly():
    still = ViewConfig(rotation_rad=0, scale=0, flip=0)
    draws = np.full((1, DRAWS), 0.5)
    images = torch.randn(1, 1, 8, 12, 12)

    maps = draw_maps(draws, still, (8, 12, 12), (4, 6, 8))

    np.testing.assert_array_equal(maps[0], [[1, 0, 0, 2], [0, 1, 0, 3], [0, 0, 1, 2]])
    torch.testing.assert_close(resample(images, maps, (4, 6, 8)), images[:, :, 2:6, 3:9, 2:10])


def test_flips_turn_the_grid_around():
    always = ViewConfig(rotation_rad=0, scale=0, flip=1)
    images = torch.randn(2, 1, *TARGET)

    flipped = resample(images, random_maps(2, TARGET, TARGET, always), TARGET)

    torch.testing.assert_close(flipped, images.flip(2, 3, 4), atol=1e-5, rtol=0)


def test_a_patch_of_one_slice_stays_one_slice():
    maps = random_maps(3, (2, 12, 12), (1, 8, 8))

    result = resample(torch.ones(3, 1, 2, 12, 12), maps, (1, 8, 8))

    torch.testing.assert_close(result, torch.ones(3, 1, 1, 8, 8))


def test_rotation_and_scale_stay_within_their_ranges_in_true_proportions():
    config = ViewConfig(rotation_rad=0.3, scale=0.2, flip=0)
    maps = random_maps(500, (24, 72, 72), (16, 48, 48), config)
    lengths = np.array([3.0, 1.0, 1.0])  # a slice is as thick as three voxels are wide
    linear = maps[:, :, :3] * lengths[:, None] / lengths
    scale = np.cbrt(np.linalg.det(linear))
    rotation = linear / scale[:, None, None]
    in_plane = np.arctan2(rotation[:, 2, 1], rotation[:, 1, 1])
    tilt = np.arccos(np.clip(rotation[:, 0, 0], -1, 1))

    np.testing.assert_allclose(
        rotation @ rotation.transpose(0, 2, 1), np.tile(np.eye(3), (500, 1, 1)), atol=1e-9
    )
    assert scale.min() > 1 / 1.2
    assert scale.min() < 0.85
    assert scale.max() < 1.2
    assert scale.max() > 1.18
    assert 0.28 < np.abs(in_plane).max() <= 0.31
    assert 0.06 < tilt.max() < 0.075 * math.sqrt(2) + 1e-9


def test_rotation_and_scaling_happen_as_often_as_asked():
    maps = random_maps(1000, TARGET, TARGET, ViewConfig(flip=0), probability=0.4)
    turned = np.abs(maps[:, 2, 1]) > 1e-12
    scaled = np.abs(np.linalg.det(maps[:, :, :3]) - 1) > 1e-9

    assert abs(turned.mean() - 0.4) < 0.05
    assert abs(scaled.mean() - 0.4) < 0.05
    assert abs((turned & scaled).mean() - 0.16) < 0.04


def test_a_view_of_moderate_size_stays_inside_its_region():
    source, target = (24, 72, 72), (16, 48, 48)
    maps = random_maps(300, source, target, ViewConfig(scale=0.05, rotation_rad=0.1))
    corners = np.array(np.meshgrid(*([-0.5, n - 0.5] for n in target), indexing="ij")).reshape(3, -1)

    places = maps[:, :, :3] @ corners + maps[:, :, 3:]

    assert places.min() >= -0.5 - 1e-9
    assert (places.max(axis=(0, 2)) <= np.array(source) - 0.5 + 1e-9).all()


@pytest.mark.parametrize("source", [(24, 72, 72), (48, 144, 144)])
def test_centres_lie_at_most_a_quarter_of_the_patch_from_the_regions(source):
    target = (16, 48, 48)
    maps = random_maps(500, source, target)
    centre = (np.array(target) - 1) / 2
    shift = maps[:, :, :3] @ centre + maps[:, :, 3] - (np.array(source) - 1) / 2

    assert (np.abs(shift) <= np.array(target) / 4 + 1e-9).all()
    assert (np.abs(shift).max(axis=0) > np.array(target) / 5).all()


def test_inverse_maps_lead_back():
    maps = torch.as_tensor(random_maps(5), dtype=torch.float32)
    points = torch.rand(5, 7, 3) * 10

    there = apply_maps(maps, points)

    expected = np.einsum("bij,bpj->bpi", maps[:, :, :3].numpy(), points.numpy()) + maps[:, None, :, 3].numpy()
    np.testing.assert_allclose(there.numpy(), expected, atol=1e-5)
    torch.testing.assert_close(apply_maps(invert_maps(maps), there), points, atol=1e-5, rtol=0)


def test_the_shape_of_a_patch_tells_how_thick_its_slices_are():
    assert anisotropy((16, 48, 48)) == 3.0
    assert anisotropy((24, 32, 24)) == 1.0
    assert anisotropy((64, 32, 32)) == 1.0
