"""NRRD, MetaImage and DICOM straight from a bucket: discovered, read and hashed as on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hssl_dist import files
from hssl_dist.config.preprocess import DatasetConfig
from hssl_dist.datasets import Dataset, discover
from hssl_dist.imaging import load_case
from tests.dicom_files import series, volume, write_files
from tests.itk_files import image_of, write_image

LIMIT = 1 << 20


def find(source: str, layout: str) -> Dataset:
    config = DatasetConfig.model_validate(
        {"name": "d", "layout": layout, "source": source, "group": "g", "modality": "ct"}
    )
    return discover(config, "/")


def test_every_format_comes_from_a_bucket(s3_bucket: str, tmp_path: Path, temporary_folder: Path) -> None:
    (tmp_path / "plain/images").mkdir(parents=True)
    for name in ("a.nrrd", "b.mha"):
        write_image(tmp_path / "plain/images" / name, image_of(volume().astype(np.int16)), True)
    write_files(tmp_path / "plain/images/c", series(volume()))
    write_files(tmp_path / "tree/anna/study/ct", series(volume()))
    for path in files.walk(str(tmp_path)):
        files.write(files.join(s3_bucket, files.relative(path, str(tmp_path))), Path(path).read_bytes())
    for layout, folder, count in (("folder", "plain", 3), ("dicom", "tree", 1)):
        local, remote = (find(f"{root}/{folder}", layout) for root in (tmp_path, s3_bucket))
        assert [case.id for case in remote.cases] == [case.id for case in local.cases]
        assert len(remote.cases) == count
        for there, here in zip(remote.cases, local.cases, strict=True):
            found, expected = (load_case(case, {}, LIMIT) for case in (there, here))
            np.testing.assert_array_equal(found.image, expected.image)
            assert found.geometry == expected.geometry
    assert list(temporary_folder.iterdir()) == []
