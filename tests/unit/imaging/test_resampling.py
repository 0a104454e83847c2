"""Resampling against slow references, and the invariants that make it safe for thick slices and labels."""

from __future__ import annotations

import numpy as np
import pytest

from hssl_dist.imaging import resampling
from hssl_dist.imaging.resampling import resample_label, resampled_grid
from tests.unit.imaging.reference import resample_whole, streamed

RNG = np.random.default_rng(0)


def weight(kernel, d):
    d = abs(d)
    if kernel in ("linear", "share"):
        return max(1 - d, 0)
    if d <= 1:
        return 1.5 * d**3 - 2.5 * d**2 + 1
    return -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0


def slow_line(line, new_size, ratio, kernel):
    """One line, voxel by voxel: centres aligned, border repeated, images' kernels widened."""
    stretch = 1 if kernel == "share" else max(ratio, 1)
    out = []
    for index in range(new_size):
        centre = (index - (new_size - 1) / 2) * ratio + (len(line) - 1) / 2
        taps = range(int(centre - 3 * stretch) - 1, int(centre + 3 * stretch) + 2)
        weights = [weight(kernel, (tap - centre) / stretch) for tap in taps]
        values = [line[min(max(tap, 0), len(line) - 1)] for tap in taps]
        out.append(np.dot(weights, values) / sum(weights))
    return np.array(out)


def slow(array, shape, ratios, kernels):
    for axis in range(3):
        array = np.apply_along_axis(slow_line, axis, array, shape[axis], ratios[axis], kernels[axis])
    return array


CASES = {
    "finer": ((4, 5, 6), (1.0, 1.0, 1.0), (0.5, 0.7, 0.9)),
    "coarser": ((6, 8, 9), (1.0, 1.0, 1.0), (1.6, 2.5, 1.2)),
    "thick slices": ((3, 6, 5), (5.0, 1.0, 1.0), (1.0, 0.8, 1.3)),
    "thick slices along x": ((6, 5, 3), (1.0, 1.0, 5.0), (0.8, 1.3, 2.0)),
    "thick target": ((9, 6, 5), (1.0, 1.0, 1.0), (4.0, 0.8, 1.0)),
    "two slices": ((2, 5, 5), (2.0, 1.0, 1.0), (1.1, 1.3, 0.6)),
    "one voxel": ((1, 1, 1), (1.0, 1.0, 1.0), (0.4, 0.4, 0.4)),
}
THICK = {"thick slices": 0, "thick slices along x": 2, "thick target": 0}


@pytest.mark.parametrize("name", CASES)
def test_image_equals_the_slow_reference(name):
    shape, spacing, target = CASES[name]
    array = RNG.normal(size=shape).astype(np.float32)
    new_shape, new_spacing = resampled_grid(shape, spacing, target)
    kernels = ["linear" if axis == THICK.get(name) else "cubic" for axis in range(3)]
    ratios = [b / a for a, b in zip(spacing, target, strict=True)]
    expected = np.clip(slow(array, new_shape, ratios, kernels), array.min(), array.max())
    result = streamed(array, spacing, new_shape, new_spacing)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=2e-6)


@pytest.mark.parametrize("name", CASES)
def test_label_equals_the_slow_reference(name):
    shape, spacing, target = CASES[name]
    label = RNG.integers(0, 4, shape).astype(np.uint8) * np.uint8(3)
    new_shape, new_spacing = resampled_grid(shape, spacing, target)
    ratios = [b / a for a, b in zip(spacing, target, strict=True)]
    shares = np.stack(
        [slow((label == 3 * k).astype(float), new_shape, ratios, ["share"] * 3) for k in range(4)]
    )
    result = resample_label(label, spacing, new_shape, new_spacing)
    top = np.sort(shares, axis=0)
    clear = top[-1] - top[-2] > 1e-5
    np.testing.assert_array_equal(result[clear], 3 * shares.argmax(axis=0)[clear])
    assert clear.mean() > 0.5 or shape == (1, 1, 1)


@pytest.mark.parametrize("target", [(0.9, 0.8, 1.0), (2.3, 1.0, 1.4), (7.0, 1.0, 1.0), (0.21, 1.0, 1.0)])
def test_slabs_meet_without_a_seam(target):
    """However few slices a slab has, and however far they reach, the volume is the same."""
    array = RNG.normal(size=(31, 9, 8)).astype(np.float32)
    shape, spacing = resampled_grid(array.shape, (1.0,) * 3, target)
    asked = []

    def planes(start, stop):
        asked.extend(range(start, stop))
        return array[start:stop]

    whole = list(resampling.resample_image(planes, array.shape, (1.0,) * 3, shape, spacing))
    assert len(whole) == 1
    assert asked == list(range(31))
    few = 3 * shape[1] * shape[2]
    slabs = list(resampling.resample_image(planes, array.shape, (1.0,) * 3, shape, spacing, slab_voxels=few))
    assert {len(slab) for slab in slabs[:-1]} <= {3}
    np.testing.assert_array_equal(np.concatenate(slabs), whole[0])
    expected = resample_whole(array, (1.0,) * 3, shape, spacing)
    np.testing.assert_allclose(whole[0].clip(array.min(), array.max()), expected, atol=2e-6)
    label = RNG.integers(0, 3, array.shape).astype(np.uint8)
    np.testing.assert_array_equal(
        resample_label(label, (1.0,) * 3, shape, spacing, few),
        resample_label(label, (1.0,) * 3, shape, spacing),
    )


def test_equal_spacing_leaves_voxels_and_spacing_alone():
    array = RNG.normal(size=(3, 4, 5)).astype(np.float32)
    shape, spacing = resampled_grid((3, 4, 5), (1.0, 0.5, 0.5), (1.0005, 0.5, 0.4998))
    assert (shape, spacing) == ((3, 4, 5), (1.0, 0.5, 0.5))
    np.testing.assert_array_equal(streamed(array, (1.0, 0.5, 0.5), shape, spacing), array)


def test_an_axis_that_needs_it_is_resampled_alone():
    array = RNG.normal(size=(3, 4, 5)).astype(np.float32)
    shape, spacing = resampled_grid((3, 4, 5), (3.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    assert (shape, spacing) == ((9, 4, 5), (1.0, 1.0, 1.0))
    result = streamed(array, (3.0, 1.0, 1.0), shape, spacing)
    np.testing.assert_array_equal(result[1::3], array)


def test_a_ramp_stays_a_ramp_in_mm():
    """Grids share their centre: what varies linearly in space does so with the new spacing."""
    ramp = np.broadcast_to(np.arange(20, dtype=np.float32) * 0.8, (20, 20, 20))
    shape, spacing = resampled_grid((20, 20, 20), (0.8,) * 3, (0.5,) * 3)
    line = streamed(np.ascontiguousarray(ramp), (0.8,) * 3, shape, spacing)[10, 10]
    np.testing.assert_allclose(np.diff(line)[4:-4], 0.5, atol=1e-5)
    assert line[shape[2] // 2 - 1 : shape[2] // 2 + 1].mean() == pytest.approx(ramp[0, 0].mean(), abs=1e-5)


def test_thick_slices_do_not_ring():
    """A bright slice between dark ones gives no undershoot, and nothing beyond its neighbours."""
    array = np.full((7, 8, 8), 10.0, dtype=np.float32)
    array[0], array[3] = 0.0, 100.0
    shape, spacing = resampled_grid(array.shape, (6.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    line = streamed(array, (6.0, 1.0, 1.0), shape, spacing)[:, 4, 4]
    assert line[12:].min() == 10.0
    assert (np.diff(line[12:21]) >= 0).all()


def test_cubic_never_leaves_the_range_of_the_source():
    step = np.zeros((8, 8, 8), dtype=np.float32)
    step[:, :, 4:] = 1.0
    shape, spacing = resampled_grid(step.shape, (1.0,) * 3, (0.3,) * 3)
    result = streamed(step, (1.0,) * 3, shape, spacing)
    assert (result.min(), result.max()) == (0.0, 1.0)


def test_a_label_only_ever_holds_its_own_values():
    label = np.zeros((6, 20, 20), dtype=np.uint8)
    label[1:5, 3:9, 3:9], label[2:5, 9:15, 9:15] = 1, 200
    for target in ((1.0, 0.7, 0.7), (9.0, 2.2, 2.2)):
        shape, spacing = resampled_grid(label.shape, (3.0, 1.0, 1.0), target)
        assert set(np.unique(resample_label(label, (3.0, 1.0, 1.0), shape, spacing))) == {0, 1, 200}


def test_an_empty_label_stays_empty():
    label = np.zeros((3, 4, 5), dtype=np.uint8)
    assert not resample_label(label, (1.0,) * 3, (6, 8, 10), (0.5,) * 3).any()
