"""Generated volumes to preprocess: smooth anatomy with noise, as large as wanted, always the same."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from scipy import ndimage

from hssl_dist.records import Case, Shape, Triple

CLASSES = {1: "bright", 2: "dark"}
_BLOB_VOXELS = 24
_BODY, _BLOBS, _NOISE, _AIR = 40.0, 60.0, 12.0, -1000.0


def generated_case(folder: Path, name: str, shape: Shape, spacing_mm: Triple) -> Case:
    """A CT-like int16 image (HU: a body in air, with soft blobs) and a label of the blobs, as LPS `.nii.gz`.

    `shape` and `spacing_mm` are z y x. Files that are there already are used as they are.
    """
    image, label = folder / f"{name}.nii.gz", folder / f"{name}-label.nii.gz"
    if not label.exists():
        folder.mkdir(parents=True, exist_ok=True)
        depth, height, width = shape
        blobs = np.random.default_rng(0).standard_normal([side // _BLOB_VOXELS + 2 for side in shape])
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        body = y**2 / 0.5 + x**2 / 0.75 < 1
        with (
            _nifti(image, shape, spacing_mm, np.int16) as images,
            _nifti(label, shape, spacing_mm, np.uint8) as labels,
        ):
            for z in range(depth):
                whole, part = divmod(z / depth * (len(blobs) - 1), 1.0)
                coarse = (1 - part) * blobs[int(whole)] + part * blobs[int(whole) + 1]
                soft = ndimage.zoom(coarse, (height / coarse.shape[0], width / coarse.shape[1]), order=1)
                noise = np.random.default_rng(z).standard_normal(soft.shape, dtype=np.float32)
                values = np.where(body, _BODY + _BLOBS * soft, _AIR) + _NOISE * noise
                images.write(np.rint(values).astype(np.int16).tobytes())
                labels.write((body * np.select([soft > 1.2, soft < -1.2], [1, 2])).astype(np.uint8).tobytes())
    return Case("generated", name, name, (str(image),), str(label), ("ct",))


@contextmanager
def _nifti(path: Path, shape: Shape, spacing_mm: Triple, dtype: Any) -> Iterator[gzip.GzipFile]:
    """A `.nii.gz` to write voxels to; it has its name once it is whole."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape[::-1])
    header.set_zooms(spacing_mm[::-1])
    header.set_sform(np.diag([-spacing_mm[2], -spacing_mm[1], spacing_mm[0], 1.0]), code=1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    aside = path.with_suffix(".partial")
    with gzip.open(aside, "wb", compresslevel=1) as stream:
        stream.write(header.binaryblock + bytes(4))
        yield stream
    aside.rename(path)
