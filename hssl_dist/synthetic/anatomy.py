"""What phantoms are made of: coordinates in mm, smooth random deformations, ellipsoids, textures.

Everything is drawn from the generator it is given, in a fixed order, so equal seeds give equal voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import gaussian_filter

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32, UInt8

    from hssl_dist.records import Shape, Triple

_TRUNCATE_SIGMAS = 3.0


@dataclass(frozen=True, slots=True)
class Phantom:
    """One synthetic examination on an RAS grid."""

    image: Float32[np.ndarray, "z y x"]
    label: UInt8[np.ndarray, "z y x"]
    spacing_mm: Triple


@dataclass(frozen=True, slots=True)
class Grid:
    """A regular grid centred on the origin; x grows to the right, y to the front, z upwards."""

    shape: Shape
    spacing_mm: Triple

    def coordinates(self) -> Float32[np.ndarray, "3 z y x"]:
        """Position `z y x` of every voxel's centre, in mm."""
        axes = [
            (np.arange(size, dtype=np.float32) - (size - 1) / 2) * spacing
            for size, spacing in zip(self.shape, self.spacing_mm, strict=True)
        ]
        return np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)


def smooth_noise(random: np.random.Generator, grid: Grid, length_mm: float) -> Float32[np.ndarray, "z y x"]:
    """Gaussian noise of unit variance, correlated over `length_mm` (the filter's standard deviation)."""
    sigmas = [length_mm / spacing for spacing in grid.spacing_mm]
    noise = random.standard_normal(grid.shape, dtype=np.float32)
    noise = gaussian_filter(noise, sigmas, mode="wrap", truncate=_TRUNCATE_SIGMAS)
    noise -= noise.mean()  # over lengths beyond the grid's, the mean would drown the rest
    scaled: Float32[np.ndarray, "z y x"] = (noise / noise.std()).astype(np.float32)
    return scaled


def deformed(
    random: np.random.Generator, grid: Grid, amplitude_mm: float, length_mm: float
) -> Float32[np.ndarray, "3 z y x"]:
    """The grid's coordinates, moved smoothly by about `amplitude_mm` along each axis."""
    moves = np.stack([smooth_noise(random, grid, length_mm) for _ in range(3)])
    return (grid.coordinates() + amplitude_mm * moves).astype(np.float32)


def ellipsoid(
    points: Float32[np.ndarray, "3 z y x"], centre_mm: Triple, radii_mm: Triple
) -> Bool[np.ndarray, "z y x"]:
    """Voxels whose points lie inside an ellipsoid with axes along z, y and x."""
    inside: Bool[np.ndarray, "z y x"] = _distance(points, centre_mm, radii_mm) < 1.0
    return inside


def ellipse(
    points: Float32[np.ndarray, "3 z y x"], centre_mm: tuple[float, float], radii_mm: tuple[float, float]
) -> Bool[np.ndarray, "z y x"]:
    """Voxels whose points lie inside an elliptic cylinder along z; centre and radii are `y x`."""
    inside: Bool[np.ndarray, "z y x"] = _distance(points[1:], centre_mm, radii_mm) < 1.0
    return inside


def _distance(
    points: Float32[np.ndarray, "axis z y x"], centre_mm: tuple[float, ...], radii_mm: tuple[float, ...]
) -> Float32[np.ndarray, "z y x"]:
    squares = [
        ((axis - centre) / radius) ** 2
        for axis, centre, radius in zip(points, centre_mm, radii_mm, strict=True)
    ]
    distance: Float32[np.ndarray, "z y x"] = np.sqrt(np.sum(squares, axis=0)).astype(np.float32)
    return distance


def jitter(random: np.random.Generator, values: Triple, spread: float) -> Triple:
    """Each value plus normal noise of standard deviation `spread`."""
    z, y, x = (float(value + spread * random.standard_normal()) for value in values)
    return z, y, x


def vary(random: np.random.Generator, values: Triple, share: float) -> Triple:
    """Each value times a log-normal factor whose logarithm has the standard deviation `share`."""
    z, y, x = (float(value * np.exp(share * random.standard_normal())) for value in values)
    return z, y, x
