"""NIfTI files to read, made to order."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from hssl_dist.records import Case

WriteNifti = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> WriteNifti:
    """`write(name, array_xyz, affine, kind, **fields)`: the path of such a file, its header so changed."""

    def write_file(
        name: str, array: Any, affine: Any = None, kind: Any = nibabel.Nifti1Image, **fields: Any
    ) -> str:
        image = kind(np.asarray(array), np.eye(4) if affine is None else affine)
        data = bytearray(image.to_bytes())
        header = np.frombuffer(data, dtype=image.header.structarr.dtype, count=1).copy()
        for key, value in fields.items():
            header[key] = value
        data[: header.nbytes] = header.tobytes()
        path = tmp_path / name
        path.write_bytes(gzip.compress(bytes(data), 1) if name.endswith(".gz") else bytes(data))
        return str(path)

    return write_file


@pytest.fixture
def case_of() -> Callable[..., Case]:
    """`case_of(*images, label=None, modalities=("mr",))`: a case of those files."""

    def build(*images: str, label: str | None = None, modalities: tuple[str, ...] = ("mr",)) -> Case:
        return Case("brain", "case-1", "patient-1", images, label, modalities)

    return build
