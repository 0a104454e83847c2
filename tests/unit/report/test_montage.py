"""Montages: the chosen slice, the picture's size, orientation and contours."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.image import imread

from hssl_dist.report.montage import CONTOURS, contour_colour, fullest_slice, montage


def _pixels(data: bytes) -> np.ndarray:
    return imread(io.BytesIO(data), format="png")[..., :3]


def _rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def test_the_fullest_slice_has_the_most_labelled_voxels() -> None:
    label = np.zeros((5, 4, 4), np.uint8)
    label[1, 0, 0], label[3, :2, :2] = 1, 2
    assert fullest_slice(label, 5) == 3
    assert fullest_slice(np.zeros_like(label), 5) == 2
    assert fullest_slice(None, 9) == 4


def test_tiles_fill_rows_of_the_given_length() -> None:
    tile = ("case", np.eye(8), None)
    one, two_rows = _pixels(montage([tile])), _pixels(montage([tile] * 5, columns=4))
    side = one.shape[0]
    assert one.shape[:2] == (side, side)
    assert two_rows.shape[0] in range(2 * side - 4, 2 * side + 5)
    assert two_rows.shape[1] in range(4 * side - 4, 4 * side + 5)


def test_slices_are_seen_from_below_with_anterior_up() -> None:
    image = np.zeros((16, 16))
    image[12:, 12:] = 1.0  # anterior (high y), the patient's right (high x)
    pixels = _pixels(montage([("", image, None)])).mean(axis=-1)
    half = pixels.shape[0] // 2
    quarters = {
        "upper left": pixels[:half, :half],
        "upper right": pixels[:half, half:],
        "lower left": pixels[half:, :half],
        "lower right": pixels[half:, half:],
    }
    assert max(quarters, key=lambda name: quarters[name].mean()) == "upper left"


def test_contours_have_their_class_colour() -> None:
    label = np.zeros((16, 16), np.uint8)
    label[4:12, 4:12] = 2
    pixels = _pixels(montage([("", np.zeros((16, 16)), label)]))
    near = np.abs(pixels - _rgb(contour_colour(2))).max(axis=-1) < 0.05
    other = np.abs(pixels - _rgb(contour_colour(1))).max(axis=-1) < 0.05
    assert near.sum() > 100
    assert not other.any()
    assert contour_colour(1) == contour_colour(1 + len(CONTOURS))


def test_pixels_are_as_tall_as_their_spacing() -> None:
    image = np.ones((10, 10))
    image[0, 0] = 0
    pixels = _pixels(montage([("", image, None)], spacing_mm=[(2.0, 1.0)])).mean(axis=-1) > 0.5
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    assert abs((rows[-1] - rows[0]) / (columns[-1] - columns[0]) - 2.0) < 0.05


def test_titles_of_any_kind_and_constant_images_are_drawn() -> None:
    for title in ("$x_{", "肝臓", "<b>"):
        assert montage([(title, np.full((4, 4), 7.0), None)]).startswith(b"\x89PNG")
