"""Scores of a case: by hand with several spacings, and against scipy's distance transform."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.measure import marching_cubes

from hssl_dist.segmentation import dice
from hssl_dist.segmentation.scores import METRICS, ClassScore, score_case

SPACINGS = [(1.0, 1.0, 1.0), (10.0, 1.5, 1.5), (0.5, 0.7, 2.0)]


def _box(shape: tuple[int, int, int], start: tuple[int, int, int], size: tuple[int, int, int]) -> np.ndarray:
    array = np.zeros(shape, np.uint8)
    array[tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))] = 1
    return array


def _one(prediction: np.ndarray, label: np.ndarray, spacing_mm, tolerance_mm: float = 1.0) -> ClassScore:
    return score_case(prediction, label, spacing_mm, {1: tolerance_mm})[1]


@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_two_single_voxels_are_as_far_apart_as_the_spacing_says(spacing_mm, axis: int) -> None:
    label, prediction = np.zeros((2, 9, 9, 9), np.uint8)
    label[4, 4, 4] = 1
    place = [4, 4, 4]
    place[axis] += 3
    prediction[tuple(place)] = 1
    distance_mm = 3 * spacing_mm[axis]
    score = _one(prediction, label, spacing_mm, tolerance_mm=distance_mm - 0.01)
    assert score.hd95_mm == pytest.approx(distance_mm)
    assert (score.dice, score.volume_error_ml, score.outcome) == (0.0, 0.0, "found")
    assert score.label_ml == pytest.approx(math.prod(spacing_mm) / 1000)
    assert _one(prediction, label, spacing_mm, tolerance_mm=distance_mm).nsd == pytest.approx(1.0)
    assert score.nsd < 1.0


@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_a_box_one_slice_too_high_by_hand(spacing_mm) -> None:
    label = _box((12, 12, 12), (2, 3, 3), (4, 5, 6))
    prediction = _box((12, 12, 12), (2, 3, 3), (5, 5, 6))
    score = _one(prediction, label, spacing_mm)
    assert score.dice == pytest.approx(2 * 120 / (120 + 150))
    # One in 5 voxels of the top face is more than 5 % of a surface: the 95th percentile is one slice.
    assert score.hd95_mm == pytest.approx(spacing_mm[0])
    assert score.volume_error_ml == pytest.approx(30 * math.prod(spacing_mm) / 1000)
    assert score.volume_error_relative == pytest.approx(30 / 120)


def test_surface_dice_weighs_faces_by_their_area() -> None:
    """A wide flat box, shifted by one of its two slices of 10 mm; 5 mm are tolerated."""
    label = _box((8, 44, 44), (2, 2, 2), (2, 40, 40))
    prediction = _box((8, 44, 44), (3, 2, 2), (2, 40, 40))
    score = _one(prediction, label, (10.0, 1.0, 1.0), tolerance_mm=5.0)
    # Of four flanks of 40 mm by 20 mm, 3/4 are near the other's; of two faces of 40 mm by 40 mm, only the
    # margin of the inner one, beside the other's flanks.
    flanks, face, margin = 4 * 40 * 20, 40 * 40, 40 * 40 - 30 * 30
    assert score.nsd == pytest.approx((0.75 * flanks + margin) / (flanks + 2 * face), abs=0.02)


@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_surface_dice_equals_an_independent_reference(spacing_mm) -> None:
    rng = np.random.default_rng(4)
    noise = ndimage.gaussian_filter(rng.normal(size=(2, 16, 24, 24)), (0, 3, 3, 3))
    base = noise[0] / noise[0].std()
    label, prediction = (base > 0.6), (base + 0.25 * noise[1] / noise[1].std() > 0.6)
    tolerance_mm = 1.2 * min(spacing_mm)
    score = _one(prediction.astype(np.uint8), label.astype(np.uint8), spacing_mm, tolerance_mm)
    expected = _reference_nsd(prediction, label, spacing_mm, tolerance_mm)
    assert 0.5 < expected < 0.97
    assert score.nsd == pytest.approx(expected, abs=0.01)


def _reference_nsd(prediction: np.ndarray, label: np.ndarray, spacing_mm, tolerance_mm: float) -> float:
    """Areas of scikit-image's marching cubes, gathered in the cells between voxels' centres."""
    places, areas = [], []
    for mask in (prediction, label):
        vertices, faces, *_ = marching_cubes(np.pad(mask, 1).astype(float), 0.5, spacing=spacing_mm)
        corners = vertices[faces]
        across = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        cells, inverse = np.unique(np.floor(corners.mean(axis=1) / spacing_mm), axis=0, return_inverse=True)
        places.append(cells * spacing_mm)
        areas.append(np.bincount(inverse, np.linalg.norm(across, axis=1) / 2))
    near = [KDTree(places[1 - i]).query(places[i])[0] <= tolerance_mm for i in (0, 1)]
    return sum(areas[i][near[i]].sum() for i in (0, 1)) / sum(area.sum() for area in areas)


@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_hd95_equals_an_independent_reference(spacing_mm) -> None:
    rng = np.random.default_rng(1)
    for _ in range(3):
        noise = ndimage.gaussian_filter(rng.normal(size=(2, 14, 22, 18)), (0, 2, 2, 2))
        prediction, label = (noise > 0.02).astype(np.uint8)
        score = _one(prediction, label, spacing_mm)
        assert score.hd95_mm == pytest.approx(_reference_hd95(prediction, label, spacing_mm), rel=1e-5)
        assert score.dice == dice(prediction, label, (1,))[1]


def _reference_hd95(prediction: np.ndarray, label: np.ndarray, spacing_mm) -> float:
    """Distance transforms over the whole padded volume: neither cropping nor trees."""
    masks = [np.pad(array.astype(bool), 1) for array in (prediction, label)]
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in masks]
    to_edge = [ndimage.distance_transform_edt(~edge, sampling=spacing_mm) for edge in edges]
    return max(np.percentile(to_edge[1][edges[0]], 95), np.percentile(to_edge[0][edges[1]], 95))


def test_dice_equals_monais() -> None:
    from monai.metrics.meandice import compute_dice
    from torch import from_numpy

    rng = np.random.default_rng(2)
    prediction, label = rng.integers(0, 2, (2, 5, 6, 7), dtype=np.uint8)
    expected = compute_dice(from_numpy(prediction)[None, None], from_numpy(label)[None, None])
    assert _one(prediction, label, (1.0, 1.0, 1.0)).dice == pytest.approx(float(expected))


@pytest.mark.parametrize("margin", [0, 7])
def test_what_surrounds_the_structures_does_not_matter_nor_does_the_volumes_border(margin: int) -> None:
    rng = np.random.default_rng(3)
    noise = ndimage.gaussian_filter(rng.normal(size=(2, 9, 9, 9)), (0, 1, 1, 1))
    prediction, label = (noise > 0).astype(np.uint8)
    padded = [np.pad(array, margin) for array in (prediction, label)]
    assert _one(*padded, (3.0, 1.0, 2.0)).values() == _one(prediction, label, (3.0, 1.0, 2.0)).values()


def test_classes_are_scored_apart_each_with_its_tolerance() -> None:
    label, prediction = np.zeros((2, 6, 10, 20), np.uint8)
    for value, x in ((1, 2), (3, 12)):
        label[2:4, 3:7, x : x + 4] = value
        prediction[2:4, 3:7, x + 1 : x + 5] = value
    scores = score_case(prediction, label, (1.0, 1.0, 1.0), {1: 0.5, 2: 1.0, 3: 1.0})
    assert [scores[value].outcome for value in (1, 2, 3)] == ["found", "absent", "found"]
    assert scores[1].dice == scores[3].dice == 0.75
    assert scores[1].hd95_mm == scores[3].hd95_mm == 1.0
    assert scores[1].nsd < scores[3].nsd == 1.0


def test_a_structure_on_one_side_only_counts_and_one_on_none_does_not() -> None:
    shape, spacing_mm = (4, 6, 8), (5.0, 2.0, 1.0)
    something, nothing = _box(shape, (1, 1, 1), (2, 2, 3)), np.zeros(shape, np.uint8)
    diagonal_mm = math.sqrt(20**2 + 12**2 + 8**2)
    missed, spurious = _one(nothing, something, spacing_mm), _one(something, nothing, spacing_mm)
    for score in (missed, spurious):
        assert (score.dice, score.nsd) == (0.0, 0.0)
        assert score.hd95_mm == pytest.approx(diagonal_mm)
    assert (missed.outcome, spurious.outcome) == ("missed", "spurious")
    assert (missed.volume_error_ml, missed.volume_error_relative) == (pytest.approx(-0.12), -1.0)
    assert spurious.volume_error_ml == pytest.approx(0.12)
    assert math.isnan(spurious.volume_error_relative)
    absent = _one(nothing, nothing, spacing_mm)
    assert absent.outcome == "absent"
    assert all(math.isnan(value) for value in absent.values().values())
    assert list(absent.values()) == [metric.key for metric in METRICS]


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"prediction has shape \(1, 1, 2\), label \(1, 1, 1\)"):
        score_case(np.zeros((1, 1, 2), np.uint8), np.zeros((1, 1, 1), np.uint8), (1.0, 1.0, 1.0), {1: 1.0})
