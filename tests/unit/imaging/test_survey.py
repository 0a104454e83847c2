"""Surveys and foreground voxels of a volume."""

from __future__ import annotations

import numpy as np
import pytest

from hssl_dist.imaging import foreground_samples, load_case, survey_case
from hssl_dist.imaging.sample import SAMPLE_VOXELS, spaced_sample
from hssl_dist.records import Scaling

CLASSES = {1: "one", 3: "three"}
RNG = np.random.default_rng(0)


@pytest.fixture
def labelled(write, case_of):
    image = RNG.normal(1000, 50, (12, 20, 30)).astype(np.float32)
    label = np.zeros(image.shape, np.uint8)
    label[2:8, 3:12, 4:20], label[9, 15, 22:25] = 1, 3
    affine = np.diag([0.5, 0.7, 2.0, 1.0])
    case = case_of(write("i.nii", image, affine), label=write("l.nii", label, affine))
    return load_case(case, CLASSES, 1 << 20)


def test_the_survey_is_of_the_annotated_voxels(labelled):
    survey = survey_case("case-1", labelled)
    values = labelled.image[0][labelled.label > 0].astype(float)
    (channel,) = survey.channels
    assert (survey.id, survey.shape, survey.spacing_mm) == ("case-1", (30, 20, 12), (2.0, 0.7, 0.5))
    assert survey.foreground == "label"
    assert channel.voxels == values.size == 6 * 9 * 16 + 3
    assert (channel.minimum, channel.maximum) == (values.min(), values.max())
    assert channel.mean == pytest.approx(values.mean())
    assert channel.std == pytest.approx(values.std())
    middles = np.quantile(values, np.linspace(1 / 512, 1 - 1 / 512, 256), method="hazen")
    np.testing.assert_allclose(channel.quantiles, middles)


def test_without_annotated_voxels_it_is_of_the_tissue(write, case_of):
    image = RNG.normal(0, 1, (16, 16, 16)).astype(np.float32)
    image[4:12, 4:12, 4:12] += 100
    case = case_of(write("i.nii", image), label=write("l.nii", np.zeros(image.shape, np.uint8)))
    survey = survey_case("case-1", load_case(case, CLASSES, 1 << 20))
    assert survey.foreground == "tissue"
    assert survey.channels[0].voxels == 8**3
    assert survey.channels[0].minimum > 90


def test_few_voxels_give_as_many_quantiles(labelled):
    small = labelled.label.copy()
    small[small == 1] = 0
    survey = survey_case("c", type(labelled)(labelled.image, small, (1, 1, 1), ("mr",), labelled.geometry))
    assert survey.channels[0].quantiles == tuple(np.sort(labelled.image[0][small > 0]).astype(float))


def test_a_sample_of_a_large_volume_is_small_and_spread_over_all_columns():
    image = np.broadcast_to(np.arange(128, dtype=np.float32), (64, 128, 128)).copy()
    sample = spaced_sample(image, Scaling()).values
    assert SAMPLE_VOXELS / 2 < sample.size <= SAMPLE_VOXELS
    counts = np.bincount(sample.astype(int), minlength=128)
    assert counts.max() - counts.min() <= 2


def test_foreground_voxels_belong_to_their_class(labelled):
    foreground, voxels = foreground_samples(labelled, seed=5)
    assert set(foreground) == set(voxels) == {"1", "3", "any"}
    assert voxels["1"] == 6 * 9 * 16
    assert voxels["3"] == 3
    for value in (1, 3):
        assert all(labelled.label[voxel] == value for voxel in foreground[str(value)])
    assert len(set(foreground["1"])) == len(foreground["any"]) == 32
    assert set(foreground["3"]) == {(22, 15, 9), (23, 15, 9), (24, 15, 9)}


def test_any_is_tissue(write, case_of):
    image = RNG.normal(0, 1, (16, 16, 16)).astype(np.float32)
    image[4:12, 4:12, 4:12] += 100
    volume = load_case(case_of(write("i.nii", image)), CLASSES, 1 << 20)
    foreground, voxels = foreground_samples(volume, seed=5)
    assert voxels == {"any": 8**3}
    assert all(volume.image[0][voxel] > 90 for voxel in foreground["any"])


def test_foreground_voxels_are_drawn_uniformly_and_repeatably(labelled):
    draws = [foreground_samples(labelled, seed)[0]["1"] for seed in range(200)]
    assert foreground_samples(labelled, 7)[0]["1"] == draws[7]
    assert draws[7] != draws[8]
    z = np.array(draws).reshape(-1, 3)[:, 0]
    counts = np.bincount(z)[4:20]
    assert counts.sum() == z.size
    assert abs(counts - 400).max() < 5 * np.sqrt(400)


def test_the_fingerprint_is_of_the_voxels_in_their_places(write, case_of):
    image = RNG.integers(-9, 9, (4, 5, 6)).astype(np.int16)
    turned = np.diag([-1.0, 1.0, 1.0, 1.0])

    def mark(array, affine=None, name="i.nii", **fields):
        return survey_case(
            "c", load_case(case_of(write(name, array, affine, **fields)), CLASSES, 1 << 20)
        ).fingerprints

    (own,) = mark(image)
    assert len(own) == 32
    same = [
        mark(image, name="i.nii.gz"),
        mark(image.astype(np.float64) * -0.0 + image),
        mark(image[::-1], turned),
        mark(image * 2, scl_slope=0.5),
        mark(image, np.diag([2.0, 2.0, 2.0, 1.0])),
    ]
    assert set(same) == {(own,)}
    changed = image.copy()
    changed[1, 2, 3] += 1
    assert own not in {*mark(changed), *mark(image[::-1]), *mark(image.reshape(5, 4, 6))}
