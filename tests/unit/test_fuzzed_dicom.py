"""DICOM files damaged at random, and tags of any content: a header or a series, or one reason in one line."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hssl_dist import dicom
from hssl_dist.config.preprocess import DatasetConfig
from hssl_dist.datasets import discover
from hssl_dist.errors import ConfigError, InputError, MissingError
from hssl_dist.imaging.source import SourceImage, read_source
from tests.depth import examples
from tests.dicom_files import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    changed,
    dicom_file,
    series,
    slice_elements,
    volume,
    write_files,
)
from tests.mutations import damaged
from tests.refusals import value_or_refusal

PLANE = volume(1)[0]
WHOLE = {
    syntax: dicom_file(slice_elements(PLANE, (0, 0, 0), syntax=syntax), syntax)
    for syntax in (EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED)
}
LIMIT = 1 << 20
TEXTS = st.sampled_from(
    [
        *("", " ", "0", "-1", "nan", "inf", "1e99", "1e-99", "-1e99", "9" * 400, "9" * 5000, "1_0", "0x1"),
        *("1\\1", "1\\0\\0\\0\\1\\0", "0\\0\\0", "1e99\\1e99\\1e99", "9" * 200 + "\\1", "\\" * 40, "a\\b"),
        *("9" * 300 + "e99\\0\\0", "1e11\\1e11\\1e11\\1e11\\1e11\\1e11", "1e-9\\1e-9", "0\\0", "\0", "\xff"),
        *("1e9\\1e-9\\0\\1e-9\\1e9\\0", "0.5\\0.75", "-0.5\\0.75", "MONOCHROME1", "RGB", "CT", "SEG"),
    ]
)
TAGS = (0x0008_0060, 0x0020_000E, 0x0020_0032, 0x0020_0037, 0x0028_0004, 0x0028_0008, 0x0028_0030)
NUMBERS = (0x0028_0002, 0x0028_0010, 0x0028_0011, 0x0028_0100, 0x0028_0101, 0x0028_0103)
CHANGES = st.dictionaries(st.sampled_from(TAGS), TEXTS | st.none(), max_size=2) | st.dictionaries(
    st.sampled_from(NUMBERS), st.sampled_from([0, 1, 2, 7, 8, 16, 32, 65535]) | st.none(), max_size=1
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("dicom")


@given(
    st.sampled_from(sorted(WHOLE)).flatmap(lambda syntax: damaged(WHOLE[syntax])),
    st.sampled_from(["IM1", "a.dcm"]),
)
@examples(600)
def test_any_bytes_are_a_header_or_no_dicom_or_refused(folder, data, name):
    path = folder / name
    path.write_bytes(data)
    header = value_or_refusal(lambda: dicom.read_header(str(path)), InputError)
    if isinstance(header, dicom.DicomHeader):
        assert set(header.values) <= set(dicom._ALLOWED.values())
        assert 0 <= header.whole("rows") < 10**9
        assert all(np.isfinite(header.numbers(tag, 3) or 0.0).all() for tag in ("position", "spacing"))


@given(st.lists(CHANGES, min_size=3, max_size=3), st.booleans(), st.none() | st.integers(0, 2), st.data())
@examples(60)
def test_any_tags_make_a_series_or_are_refused(folder, changes, alike, spoiled, data):
    root = folder / "series"
    shutil.rmtree(root, ignore_errors=True)
    images = [
        changed(elements, changes[0 if alike else place]) for place, elements in enumerate(series(volume(3)))
    ]
    write_files(root / "p1", images)
    if spoiled is not None:
        path = sorted((root / "p1").iterdir())[spoiled]
        path.write_bytes(data.draw(damaged(path.read_bytes())))

    config = DatasetConfig(name="toy", layout="dicom", source=str(root), group="toys")
    found = value_or_refusal(lambda: discover(config, "/"), ConfigError, MissingError)
    for case in getattr(found, "cases", ()):
        source = value_or_refusal(lambda: read_source(case.images[0], LIMIT), InputError)  # noqa: B023
        if isinstance(source, SourceImage):
            assert source.raw.shape == (1, *reversed(source.header.shape))
            assert np.isfinite(source.header.affine).all()
