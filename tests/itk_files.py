"""Volumes written by SimpleITK, as the tests of its formats need them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

OBLIQUE = (0.96, -0.28, 0.0, 0.28, 0.96, 0.0, 0.0, 0.0, 1.0)
FORMATS = (("a.nrrd", False), ("a.nrrd", True), ("a.mha", False), ("a.mha", True))
"""Names of files, and whether they are compressed."""


def image_of(
    array_kji: Any,
    spacing_mm: tuple[float, ...] = (1.5, 2.0, 3.0),
    origin_mm: tuple[float, ...] = (10.0, -20.0, 30.0),
    direction: tuple[float, ...] = OBLIQUE,
) -> Any:
    """An ITK image of an array (axes reversed) with a geometry of its own (`i j k`, LPS)."""
    image = sitk.GetImageFromArray(np.asarray(array_kji))
    image.SetSpacing(spacing_mm)
    image.SetOrigin(origin_mm)
    image.SetDirection(direction)
    return image


def write_image(path: Path, image: Any, compressed: bool = False, tags: dict[str, str] | None = None) -> str:
    """Write an ITK image in the format of the path's ending, with more lines in its header."""
    for key, value in (tags or {}).items():
        image.SetMetaData(key, value)
    sitk.WriteImage(image, str(path), compressed)
    return str(path)


def convert(source: Path, target: Path, compressed: bool = True) -> None:
    """Rewrite a volume in the format of the target's ending."""
    sitk.WriteImage(sitk.ReadImage(str(source)), str(target), compressed)


def voxels(dtype: str = "int16", shape: tuple[int, int, int] = (4, 5, 6)) -> np.ndarray:
    """Random voxels over all of a type's range."""
    rng = np.random.default_rng(0)
    if dtype.startswith("float"):
        return rng.normal(size=shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def header_and_voxels(path: str) -> tuple[bytes, bytes]:
    """A file's header, to the byte, and what comes after it."""
    data = Path(path).read_bytes()
    end = b"\n\n" if path.endswith(".nrrd") else b"LOCAL\n"
    split = data.index(end) + len(end)
    return data[:split], data[split:]
