"""Short-axis cine MR of the heart in arbitrary units: both ventricles, myocardium, lungs, chest wall."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from hssl_dist.synthetic.anatomy import Grid, Phantom, deformed, ellipse, smooth_noise

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32

Phase = Literal["ed", "es"]

_LUNG, _LIVER, _WALL, _MYOCARDIUM, _BLOOD = 0.10, 0.42, 0.75, 0.36, 1.0
_SLICE_MM = 8.0


def heart(anatomy: np.random.Generator, scan: np.random.Generator, phase: Phase) -> Phantom:
    """A patient's heart (`anatomy`) at end diastole or end systole, as one scanner takes it (`scan`).

    The label has right ventricle 1, myocardium 2 and left ventricle 3. Signal is in arbitrary units that
    differ from scan to scan.
    """
    grid = _grid(anatomy)
    points = deformed(anatomy, grid, amplitude_mm=2.5, length_mm=22.0)
    signal = _surroundings(anatomy, points, grid)
    right, muscle, left = _ventricles(anatomy, points, phase)
    trabeculae = smooth_noise(anatomy, grid, 3.5) > 1.45
    signal[right | left] = _BLOOD
    signal[(right | left) & trabeculae] = 0.5 * (_BLOOD + _MYOCARDIUM)
    signal[muscle] = _MYOCARDIUM
    signal = signal * (1.0 + 0.06 * smooth_noise(anatomy, grid, 3.0))

    bias = np.exp(0.22 * smooth_noise(scan, grid, 28.0))
    noise = [0.045 * scan.standard_normal(grid.shape) for _ in range(2)]
    magnitude = np.hypot(signal * bias + noise[0], noise[1])  # Rician, as in magnitude images
    units = float(np.exp(scan.uniform(np.log(80.0), np.log(1500.0))))
    label = np.select([left, muscle, right], [3, 2, 1], 0).astype(np.uint8)
    return Phantom((units * magnitude).astype(np.float32), label, grid.spacing_mm)


def _grid(anatomy: np.random.Generator) -> Grid:
    """A patient's cases share the grid, as the phases of one cine do."""
    in_plane = float(np.round(anatomy.uniform(1.4, 1.65), 3))
    height, width = (int(anatomy.integers(66, 79)) for _ in range(2))
    return Grid((int(anatomy.integers(9, 13)), height, width), (_SLICE_MM, in_plane, in_plane))


def _surroundings(
    anatomy: np.random.Generator, points: Float32[np.ndarray, "3 z y x"], grid: Grid
) -> Float32[np.ndarray, "z y x"]:
    """Lungs with vessels, the liver below on the right, the chest wall in front."""
    signal = np.full(grid.shape, _LUNG, dtype=np.float32)
    signal[smooth_noise(anatomy, grid, 3.5) > 1.9] = 0.55
    slope = float(anatomy.uniform(0.3, 0.6))
    signal[points[1] < -38.0 + slope * points[2] - 0.25 * points[0]] = _LIVER
    signal[points[1] > 42.0 + 0.25 * points[2]] = _WALL
    signal[ellipse(points, (-47.0, -30.0), (8.0, 8.0))] = 0.95  # descending aorta
    return signal


def _ventricles(
    anatomy: np.random.Generator, points: Float32[np.ndarray, "3 z y x"], phase: Phase
) -> tuple[Bool[np.ndarray, "z y x"], Bool[np.ndarray, "z y x"], Bool[np.ndarray, "z y x"]]:
    """Right ventricle, myocardium, left ventricle: half ellipsoids about the long axis, cut at the base."""
    radius = float(22.0 * np.exp(0.12 * anatomy.standard_normal()))
    thickness = float(9.0 * np.exp(0.15 * anatomy.standard_normal()))
    ejection = float(anatomy.uniform(0.45, 0.68))
    apex, base = float(anatomy.uniform(-42.0, -34.0)), float(anatomy.uniform(30.0, 40.0))
    shift_y, shift_x = (float(anatomy.uniform(-5.0, 5.0)) for _ in range(2))
    width, height = float(anatomy.uniform(25.0, 31.0)), float(anatomy.uniform(29.0, 35.0))
    if phase == "es":
        shrink = np.sqrt(1.0 - ejection)  # area falls by the ejection fraction; the wall thickens in turn
        outer = 0.95 * (radius + thickness)
        radius, width, height, base = shrink * radius, 0.78 * width, 0.82 * height, base - 8.0
        thickness = outer - radius

    along = (base - points[0]) / (base - apex)  # 0 at the base, 1 at the apex
    taper = np.sqrt(np.clip(1.0 - along**2, 0.0, 1.0))
    between = (along >= 0.0) & (along <= 1.0)
    centre_y, centre_x = shift_y, shift_x - 12.0
    left_distance = np.hypot(points[1] - centre_y, points[2] - centre_x)
    left = between & (left_distance < radius * taper)
    inside = (along >= 0.0) & (along <= 1.06)
    outer_taper = np.sqrt(np.clip(1.0 - (along / 1.06) ** 2, 0.0, 1.0))
    whole = inside & (left_distance < radius * taper + thickness * np.maximum(outer_taper, 0.55))
    right_y, right_x = centre_y + 6.0, centre_x + 0.75 * (radius + thickness)
    right_taper = np.sqrt(np.clip(1.0 - (along / 0.9) ** 2, 0.0, 1.0))
    right_distance = np.hypot(
        (points[1] - right_y) / np.maximum(height * right_taper, 1e-3),
        (points[2] - right_x) / np.maximum(width * right_taper, 1e-3),
    )
    right = (along >= 0.0) & (right_distance < 1.0) & ~whole
    return right, whole & ~left, left
