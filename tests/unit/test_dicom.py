"""What is read of a DICOM file: the allowed tags in every coding, and nothing else."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from hssl_dist import dicom, files
from hssl_dist.errors import InputError
from tests.dicom_files import (
    BIG_ENDIAN,
    CANARY,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    TELLING,
    UID,
    changed,
    dicom_file,
    series,
    slice_elements,
    volume,
    write_files,
)

SYNTAXES = (EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED)
PLANE = volume(1)[0]


@pytest.fixture
def put(tmp_path):
    """`put(data, name)`: the path of a file of those bytes."""

    def write(data: bytes, name: str = "IM1") -> str:
        path = tmp_path / name
        path.write_bytes(data)
        return str(path)

    return write


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_the_allowed_tags_are_read_in_every_coding(put, syntax):
    header = dicom.read_header(put(dicom_file(slice_elements(PLANE, (1, 2.5, -3), syntax=syntax), syntax)))
    assert header is not None
    assert re.fullmatch("[0-9a-f]{16}", header.series)
    assert [header.whole(name) for name in ("rows", "columns", "samples", "frames")] == [7, 6, 1, 0]
    assert header.numbers("position", 3) == (1.0, 2.5, -3.0)
    assert header.numbers("spacing", 2) == (0.75, 0.5)
    assert header.numbers("orientation", 6) == (1, 0, 0, 0, 1, 0)
    assert (header.values["modality"], header.values["intercept"]) == ("CT", "-1024")
    assert header.pixels is not None
    assert header.pixels[1] == header.pixels[0] + PLANE.nbytes


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_nothing_else_is_read(put, syntax):
    data = dicom_file(slice_elements(PLANE, (0, 0, 0), syntax=syntax), syntax)
    assert (CANARY.encode() in data) == (syntax != DEFLATED)
    header = dicom.read_header(put(data))
    assert header is not None
    assert CANARY not in repr(asdict(header))
    assert UID not in repr(asdict(header)).replace(f"{UID}.8", "")
    assert {"20260102"}.isdisjoint(header.values.values())
    assert len(TELLING) > 15


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_every_cut_of_a_header_is_noticed(put, syntax):
    data = dicom_file(slice_elements(PLANE, (0, 0, 0), syntax=syntax), syntax)
    for end in range(133, len(data) - PLANE.nbytes if syntax != DEFLATED else len(data), 23):
        try:
            header = dicom.read_header(put(data[:end]))
        except InputError as error:
            said = str(error)
        else:  # cut between two elements, before anything says that it is an image
            assert header is not None
            assert header.pixels is None
            assert "rows" not in header.values
            continue
        assert re.match(r"^IM1: .*(damaged or truncated|which series)", said)
        assert CANARY not in said


def test_other_files_are_no_dicom(put):
    for data in (b"", b"short", bytes(132), b"x" * 1000, b"DICM"):
        assert dicom.read_header(put(data)) is None
        with pytest.raises(InputError, match=r"^a.DCM: not a DICOM file, damaged or truncated$"):
            dicom.read_header(put(data, "a.DCM"))
    directory = dicom_file([(0x0004_1130, "CS", CANARY)], media="1.2.840.10008.1.3.10")
    assert dicom.read_header(put(directory, "DICOMDIR")) is None


def test_a_file_of_no_series_is_damaged(put):
    elements = changed(slice_elements(PLANE, (0, 0, 0)), {0x0020_000E: None})
    with pytest.raises(InputError, match=r"^IM1: the DICOM file does not say which series it is of$"):
        dicom.read_header(put(dicom_file(elements)))


def test_a_report_has_no_pixels(put):
    elements = [one for one in slice_elements(PLANE, (0, 0, 0)) if one[0] < 0x0028_0000]
    header = dicom.read_header(put(dicom_file(elements)))
    assert header is not None
    assert header.pixels is None


def nested(depth: int) -> list:
    inner = [(0x0010_0010, "PN", CANARY)]
    for _ in range(depth):
        inner = [(0x0008_1140, "SQ", [inner])]
    return inner


def test_sequences_are_stepped_over_to_a_depth(put):
    elements = slice_elements(PLANE, (0, 0, 0))
    elements = [one for one in elements if one[0] != 0x0008_1140]
    assert dicom.read_header(put(dicom_file(elements + nested(20)))) is not None
    with pytest.raises(InputError, match="damaged or truncated"):
        dicom.read_header(put(dicom_file(elements + nested(100))))


@pytest.mark.parametrize(
    "position", ["1\\2", "1\\2\\nan", "1\\2\\inf", "1\\2\\x", "", "1\\2\\3\\4", "1\\2\\1e999"]
)
def test_what_is_no_number_is_none(put, position):
    header = dicom.read_header(
        put(dicom_file(changed(slice_elements(PLANE, (0, 0, 0)), {0x0020_0032: position})))
    )
    assert header is not None
    assert header.numbers("position", 3) is None


def test_random_damage_is_an_input_error_or_harmless(put):
    rng = np.random.default_rng(0)
    for syntax in SYNTAXES:
        data = dicom_file(slice_elements(PLANE, (0, 0, 0), syntax=syntax), syntax)
        for _ in range(300):
            spoilt = bytearray(data)
            for place in rng.integers(132, len(data), 4):
                spoilt[place] = rng.integers(256)
            with suppress(InputError):
                dicom.read_header(put(bytes(spoilt)))


@pytest.mark.parametrize("remote", [False, True])
def test_a_series_is_found_in_its_folder(tmp_path, remote):
    other = f"{UID}.99"
    folder = tmp_path / "folder"
    write_files(folder, series(volume(3)), ["c", "a", "b"])
    write_files(folder, series(volume(2), uid=other), ["x", "y"])
    write_files(folder / "below", series(volume(2)))
    (folder / "notes.txt").write_text(CANARY)
    (folder / ".hidden.dcm").write_bytes(b"no")
    (folder / "DICOMDIR").write_bytes(dicom_file([], media="1.2.840.10008.1.3.10"))
    root = str(folder)
    if remote:
        root = f"memory://{tmp_path.name}/folder"
        for path in files.walk(str(folder)):
            files.write(files.join(root, files.relative(path, str(folder))), Path(path).read_bytes())
    first = dicom.read_header(files.join(root, "a"))
    assert first is not None
    url = dicom.series_url(root, first.series)
    assert url == f"{root}/#{first.series}"
    assert [path for path, _ in dicom.series_files(url)] == [files.join(root, name) for name in "abc"]
    with pytest.raises(InputError, match=r"^folder: 2 DICOM series in one folder; a case is one: give each"):
        dicom.series_files(dicom.series_url(root))
    with pytest.raises(InputError, match=r"^folder: the folder holds no DICOM images of the case$"):
        dicom.series_files(dicom.series_url(root, "0" * 16))
    files.write(files.join(root, "z.dcm"), b"")
    with pytest.raises(InputError, match=r"^z.dcm: not a DICOM file, damaged or truncated$"):
        dicom.series_files(url)


def test_only_folders_are_series():
    assert dicom.is_series("/data/p/s/")
    assert dicom.is_series("s3://bucket/p s/#0123456789abcdef")
    for url in ("/data/p/s", "/data/a.nii.gz", "/data/p#0123456789abcdef", "/data/p/#0123", ""):
        assert not dicom.is_series(url)
    assert dicom.series_name("s3://bucket/p s/#0123456789abcdef") == dicom.series_name("/p s/") == "p s"
