"""Prepare and restore: exact where nothing is interpolated, faithful where something is, always the same."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from hssl_dist.errors import InputError
from hssl_dist.imaging import (
    ChannelRecipe,
    Recipe,
    foreground_samples,
    load_case,
    prepare,
    survey_case,
)
from hssl_dist.records import Geometry, Scaling, Volume
from hssl_dist.store.quantising import stored_numbers
from tests.restoring import restore
from tests.unit.imaging.reference import prepare_whole

MR = ChannelRecipe(rule="mr")
CLASSES = {1: "one", 2: "two"}


def recipe_of(spacing_mm, *channels):
    return Recipe(spacing_mm=spacing_mm, channels=channels or (MR,), classes=CLASSES, storage={})


def volume_of(image, label=None, spacing_mm=(1.0, 1.0, 1.0), modalities=("mr",)):
    image = np.asarray(image, dtype=np.float32)
    shape = image.shape[1:]
    geometry = Geometry(
        original_shape=shape[::-1],
        original_affine=tuple(map(tuple, np.diag([*spacing_mm[::-1], 1.0]).tolist())),
        oriented_shape=shape,
        oriented_spacing_mm=spacing_mm,
        crop_start=(0, 0, 0),
        crop_stop=shape,
        shape=shape,
        spacing_mm=spacing_mm,
    )
    return Volume(image, label, spacing_mm, modalities, geometry)


def head(shape=(24, 30, 28), seed=0):
    """A bright ball in dark noise, with two structures inside; background of a third on every side."""
    z, y, x = np.indices(shape)
    centre = [size / 2 for size in shape]
    radius = np.sqrt(
        sum(((i - c) / (0.35 * s)) ** 2 for i, c, s in zip((z, y, x), centre, shape, strict=True))
    )
    noise = np.random.default_rng(seed).normal(size=shape)
    image = np.where(radius < 1, 100 + 10 * noise, np.abs(noise)).astype(np.float32)
    label = np.where(radius < 0.4, 2, np.where(radius < 0.8, 1, 0)).astype(np.uint8)
    return image, label


def dice(a, b):
    return 2 * np.sum(a & b) / (np.sum(a) + np.sum(b))


def test_without_resampling_labels_come_back_exactly(write, case_of):
    image, label = head()
    affine = np.array([[0, -1, 0, 5], [-1, 0, 0, 7], [0, 0, 2, 9], [0, 0, 0, 1]])
    case = case_of(write("i.nii.gz", image.T, affine), label=write("l.nii.gz", label.T, affine))
    stored, _ = prepare(load_case(case, CLASSES, 1 << 20), recipe_of((2.0, 1.0, 1.0)))
    assert all(
        new < old for new, old in zip(stored.geometry.shape, stored.geometry.oriented_shape, strict=True)
    )
    np.testing.assert_array_equal(restore(stored.label, stored.geometry), label.T)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (3.0, 0.8, 0.8), (0.7, 1.4, 1.1)])
def test_with_resampling_labels_come_back_on_the_source_grid(write, case_of, spacing_mm):
    image, label = head((20, 60, 56))
    affine = np.array([[0, -0.875, 0, 5], [-0.875, 0, 0, 7], [0, 0, 2.5, 9], [0, 0, 0, 1]])
    case = case_of(write("i.nii.gz", image.T, affine), label=write("l.nii.gz", label.T, affine))
    stored, _ = prepare(load_case(case, CLASSES, 1 << 20), recipe_of(spacing_mm))
    assert stored.spacing_mm == stored.geometry.spacing_mm == spacing_mm
    assert stored.image.shape[1:] == stored.label.shape == stored.geometry.shape
    back = restore(stored.label, stored.geometry)
    assert back.shape == label.T.shape
    np.testing.assert_array_equal(stored.geometry.original_affine, affine)
    assert dice(back == 1, label.T == 1) > 0.93
    assert dice(back == 2, label.T == 2) > 0.93


def test_the_crop_is_the_box_of_the_tissue():
    image = np.random.default_rng(0).normal(0, 1, (1, 20, 20, 20))
    image[0, 5:15, 4:17, 6:12] += 500
    stored, _ = prepare(volume_of(image), recipe_of((1.0, 1.0, 1.0)))
    assert (stored.geometry.crop_start, stored.geometry.crop_stop) == ((5, 4, 6), (15, 17, 12))
    assert stored.geometry.shape == (10, 13, 6)


def test_the_crop_never_cuts_a_labelled_voxel():
    image, label = head()
    label[0, 0, 0] = label[-1, -1, -1] = 1
    stored, _ = prepare(volume_of(image[None], label), recipe_of((1.0, 1.0, 1.0)))
    assert stored.geometry.shape == label.shape
    np.testing.assert_array_equal(stored.label, label)


def test_the_crop_holds_the_tissue_of_every_channel():
    image = np.zeros((2, 10, 10, 10))
    image[0, 2:4, 2:4, 2:4] = image[1, 5:8, 5:8, 5:8] = 1
    stored, _ = prepare(volume_of(image, modalities=("mr", "mr")), recipe_of((1.0, 1.0, 1.0), MR, MR))
    assert (stored.geometry.crop_start, stored.geometry.crop_stop) == ((2, 2, 2), (8, 8, 8))


def test_ct_padding_below_air_is_no_reason_to_keep_air():
    image = np.full((1, 12, 12, 12), -1000.0)
    image[0, :, :3] = -3024
    image[0, 3:9, 5:9, 4:8] = 40
    ct = ChannelRecipe(rule="ct", clip_low=-200, clip_high=200, offset=0, scale=100)
    stored, (intensity,) = prepare(volume_of(image, modalities=("ct",)), recipe_of((1.0, 1.0, 1.0), ct))
    assert (stored.geometry.crop_start, stored.geometry.crop_stop) == ((3, 5, 4), (9, 9, 8))
    assert intensity.background == -2.0


def test_ct_is_normalised_with_the_dataset_s_numbers():
    image = np.linspace(-1000, 3000, 64).reshape(1, 4, 4, 4)
    ct = ChannelRecipe(rule="ct", clip_low=-500, clip_high=800, offset=100, scale=250)
    stored, (intensity,) = prepare(volume_of(image, modalities=("ct",)), recipe_of((1.0, 1.0, 1.0), ct))
    box = tuple(
        slice(a, b) for a, b in zip(stored.geometry.crop_start, stored.geometry.crop_stop, strict=True)
    )
    np.testing.assert_allclose(stored.image, ((image.clip(-500, 800) - 100) / 250)[:, *box], atol=1e-6)
    assert (intensity.minimum, intensity.maximum) == (-1000, 3000)
    assert (intensity.clip_low, intensity.clip_high, intensity.offset, intensity.scale) == (
        -500,
        800,
        100,
        250,
    )


def test_mr_does_not_depend_on_unit_and_offset():
    image, _ = head()
    one, (first,) = prepare(volume_of(image[None]), recipe_of((1.0, 1.0, 1.0)))
    two, (second,) = prepare(volume_of(image[None] * 4096 + 65536), recipe_of((1.0, 1.0, 1.0)))
    np.testing.assert_allclose(one.image, two.image, atol=2e-3)
    assert second.scale == pytest.approx(4096 * first.scale, rel=1e-4)
    tissue = one.image[one.image > -5]
    assert tissue.mean() == pytest.approx(0.0, abs=0.02)
    assert tissue.std() == pytest.approx(1.0, abs=0.05)


def test_an_mr_spike_neither_moves_the_others_nor_stays_unbounded():
    image, _ = head()
    spiked = image.copy()
    spiked[12, 15, 14] = 3e5
    one, _ = prepare(volume_of(image[None]), recipe_of((1.0, 1.0, 1.0)))
    two, (intensity,) = prepare(volume_of(spiked[None]), recipe_of((1.0, 1.0, 1.0)))
    assert intensity.maximum == 3e5
    assert two.image.max() == pytest.approx(10.0)
    assert np.sort(np.abs(one.image - two.image), axis=None)[-2] < 0.02


def test_an_image_of_two_values_is_finite():
    image = np.zeros((1, 10, 10, 10))
    image[0, 3:7, 3:7, 3:7] = 5
    stored, _ = prepare(volume_of(image), recipe_of((0.8, 0.8, 0.8)))
    assert np.isfinite(stored.image).all()
    image[0, 4, 4, 4] = 6
    stored, _ = prepare(volume_of(image), recipe_of((1.0, 1.0, 1.0)))
    assert np.isfinite(stored.image).all()


def test_a_dark_spot_in_a_flat_image_keeps_the_volume():
    image = np.full((1, 10, 10, 10), 5.0)
    image[0, 5, 5, 5] = 1.0
    stored, _ = prepare(volume_of(image), recipe_of((1.0, 1.0, 1.0)))
    assert stored.geometry.shape == (10, 10, 10)
    assert np.isfinite(stored.image).all()


def test_background_is_what_air_became():
    image = head()[0]
    image = np.where(image > 50, 3 * image - 200, image)
    _, (intensity,) = prepare(volume_of(image[None]), recipe_of((1.0, 1.0, 1.0)))
    low = np.percentile(image, 2)
    assert 0 < low < 0.1
    assert intensity.clip_low < low
    assert intensity.background == pytest.approx((low - intensity.offset) / intensity.scale)


def test_an_impossible_spacing_is_refused_before_memory_is_asked_for():
    image, _ = head()
    volume = volume_of(image[None], spacing_mm=(1000.0, 1000.0, 1000.0))
    with pytest.raises(InputError, match=r"the spacing in the file's header cannot be right$"):
        prepare(volume, recipe_of((1.0, 1.0, 1.0)))


def test_prepare_leaves_its_input_alone():
    image, label = head()
    volume = volume_of(image[None], label)
    before = volume.image.copy(), label.copy()
    prepare(volume, recipe_of((1.3, 0.9, 0.9)))
    np.testing.assert_array_equal(volume.image, before[0])
    np.testing.assert_array_equal(label, before[1])


def file_numbers(dtype, slope):
    """A head in a file's own numbers, and in a second channel another one."""
    image = np.stack([head((21, 40, 36), seed)[0] for seed in (1, 2)])
    numbers = np.rint(image * 0.5 + 40) if dtype == np.uint8 else np.rint(image * 7 - 300)
    scaling = Scaling(slope, -20.0 if slope != 1 else 0.0)
    volume = volume_of(image, head((21, 40, 36))[1], (2.5, 0.8, 0.8), ("mr", "mr"))
    return dataclasses.replace(volume, image=numbers.astype(dtype), scaling=scaling)


@pytest.mark.parametrize(
    ("dtype", "slope"),
    [(np.int16, 1.0), (np.uint8, 1.0), (np.int16, 0.37), (np.int16, -2.0), (np.float32, 1.0)],
)
@pytest.mark.parametrize("spacing_mm", [(2.5, 0.8, 0.8), (2.5, 1.1, 0.9), (1.1, 0.8, 0.8), (3.1, 0.5, 1.2)])
def test_slice_by_slice_equals_the_whole_volume_at_once(dtype, slope, spacing_mm):
    """To float rounding, and as stored numbers to half a step and that rounding."""
    volume, recipe = file_numbers(dtype, slope), recipe_of(spacing_mm, MR, MR)
    exact, intensities = prepare(volume, recipe)
    expected = prepare_whole(volume, recipe, intensities, exact.geometry)
    np.testing.assert_allclose(exact.image, expected, atol=1e-5)
    stored, again = prepare(volume, recipe, partial(stored_numbers, "int16"))
    assert (stored.image.dtype, stored.scaling) == (np.int16, Scaling(2**-10))
    assert (stored.geometry, again) == (exact.geometry, intensities)
    np.testing.assert_array_equal(stored.label, exact.label)
    np.testing.assert_allclose(stored.scaling.values(stored.image), expected, atol=2**-11 + 1e-5)


def test_a_file_s_numbers_and_their_values_are_one_volume():
    """Held as int16 or as float32, a volume has the same crop, statistics, samples and survey."""
    narrow = file_numbers(np.int16, 0.37)
    wide = dataclasses.replace(narrow, image=narrow.scaling.values(narrow.image), scaling=Scaling())
    recipe = recipe_of((2.5, 1.1, 0.9), MR, MR)
    one, two = prepare(narrow, recipe), prepare(wide, recipe)
    np.testing.assert_array_equal(one[0].image, two[0].image)
    assert (one[0].geometry, one[1]) == (two[0].geometry, two[1])
    assert survey_case("c", narrow) == survey_case("c", wide)
    unlabelled = [dataclasses.replace(volume, label=None) for volume in (narrow, wide)]
    assert survey_case("c", unlabelled[0]) == survey_case("c", unlabelled[1])
    assert foreground_samples(narrow, 3) == foreground_samples(wide, 3)


DIGEST = """
import hashlib, sys
from hssl_dist.imaging import ChannelRecipe, Recipe, load_case, prepare
from hssl_dist.records import Case
case = Case("brain", "case-1", "patient-1", (sys.argv[1],), sys.argv[2], ("mr",))
classes, channels = {1: "a", 2: "b"}, (ChannelRecipe(rule="mr"),)
recipe = Recipe(spacing_mm=(1.7, 0.8, 0.8), channels=channels, classes=classes, storage={})
stored, intensities = prepare(load_case(case, classes, 1 << 20), recipe)
text = stored.geometry.to_json() + intensities[0].to_json()
print(hashlib.sha256(stored.image.tobytes() + stored.label.tobytes() + text.encode()).hexdigest())
"""


def test_other_processes_and_thread_counts_give_the_same_bytes(write):
    image, label = head()
    arguments = [write("i.nii.gz", image), write("l.nii.gz", label)]
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST, *arguments],
            env={"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "PYTHONHASHSEED": threads},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for threads in ("1", "2")
    }
    assert len(digests) == 1
    assert len(digests.pop().strip()) == hashlib.sha256().digest_size * 2
