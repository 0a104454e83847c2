"""Real volumes rewritten by SimpleITK in every format: the same volume comes back."""

from __future__ import annotations

import locale
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from hssl_dist import dicom
from hssl_dist.imaging import load_case
from hssl_dist.records import Case
from tests.itk_files import convert

pytestmark = pytest.mark.real

LIMIT = 1 << 24
SOURCES = {
    "hippocampus": (
        "Task04_Hippocampus/imagesTr",
        "Task04_Hippocampus/labelsTr",
        {1: "anterior", 2: "posterior"},
    ),
    "lidc": ("LIDC_nodules/images", "LIDC_nodules/labels", {1: "nodule"}),
}
FORMATS = (".nrrd", ".mha", "series")
EVERY = 20
SPACING_MM = 1e-4
"""NIfTI keeps spacings as float32."""


def write_series(source: Path, folder: Path) -> None:
    """Write a volume of whole numbers as a CT series."""
    image = sitk.Cast(sitk.ReadImage(str(source)), sitk.sitkInt16)
    direction = np.reshape(image.GetDirection(), (3, 3))
    tags = {
        "0008|0060": "CT",
        "0020|000e": "1.2.826.0.1.3680043.10.7",
        "0020|0037": "\\".join(f"{value:.12g}" for value in (*direction[:, 0], *direction[:, 1])),
    }
    folder.mkdir()
    for index in range(image.GetDepth()):
        plane = image[:, :, index]
        place = image.TransformIndexToPhysicalPoint((0, 0, index))
        for key, value in {**tags, "0020|0032": "\\".join(f"{part:.12g}" for part in place)}.items():
            plane.SetMetaData(key, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetImageIO("GDCMImageIO")
        writer.SetFileName(str(folder / f"{(index * 37) % 1009}"))
        writer.Execute(plane)


@pytest.fixture(autouse=True)
def _kept_locale():
    """GDCM's writer leaves the process in the locale C."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


def load(image: str, label: Path, classes: dict[int, str]) -> Any:
    return load_case(Case("real", "case", "case", (image,), str(label), ("mr",)), classes, LIMIT)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", SOURCES)
def test_a_real_volume_is_the_same_in_every_format(real_data: Path, tmp_path: Path, name: str, kind: str):
    images, labels, classes = SOURCES[name]
    paths = sorted((real_data / images).glob("*.nii.gz"))[::EVERY]
    paths = [path for path in paths if not path.name.startswith(".")]
    compared = 0
    for path in paths:
        label = real_data / labels / path.name
        expected = load(str(path), label, classes)
        if kind == "series" and (np.abs(expected.image).max() > 32000 or (expected.image % 1).any()):
            continue  # DICOM keeps whole numbers of 16 bits
        target = tmp_path / path.name.removesuffix(".nii.gz")
        if kind == "series":
            write_series(path, target)
            url = dicom.series_url(str(target))
        else:
            convert(path, target.with_suffix(kind))
            convert(label, tmp_path / f"label{kind}")
            label, url = tmp_path / f"label{kind}", str(target.with_suffix(kind))
        found = load(url, label, classes)
        np.testing.assert_array_equal(found.image, expected.image)
        np.testing.assert_array_equal(found.label, expected.label)
        np.testing.assert_allclose(found.spacing_mm, expected.spacing_mm, atol=SPACING_MM)
        compared += 1
    assert compared >= 4
