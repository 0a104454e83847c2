"""DICOM series: the volume ITK makes of them, and the exact reason for what is no regular grid."""

from __future__ import annotations

import locale
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from hssl_dist import dicom, files
from hssl_dist.errors import InputError
from hssl_dist.imaging import load_case
from hssl_dist.imaging.orientation import to_ras
from hssl_dist.imaging.source import read_source
from tests.dicom_files import (
    AXIAL,
    BIG_ENDIAN,
    CANARY,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    changed,
    series,
    volume,
    write_files,
)

LIMIT = 1 << 20
NIFTI_ROUNDING = 1e-4
"""NIfTI keeps the affine as float32, and ITK the slices' distance as a rounded sum."""
ORIENTATIONS = {
    "axial": AXIAL,
    "axial from above": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "sagittal": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
    "coronal": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0),
    "oblique": (0.96, 0.28, 0.0, -0.28, 0.96, 0.0),
    "doubly oblique": (0.8, 0.48, 0.36, -0.6, 0.64, 0.48),
}


@pytest.fixture(autouse=True)
def _kept_locale():
    """GDCM's writer leaves the process in the locale C."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


def read(folder: str):
    return read_source(dicom.series_url(folder), LIMIT)


def itk_image(folder: str):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(folder))
    return reader.Execute()


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN, DEFLATED])
def test_hounsfield_units_in_every_coding(tmp_path, syntax):
    source = read(write_files(tmp_path / "scan", series(volume(), syntax=syntax), syntax=syntax))
    assert (source.name, source.header.shape, source.header.channels) == ("scan", (6, 7, 5), 1)
    assert (source.header.dtype, source.header.slope, source.header.intercept) == (np.int16, 1.0, 0.0)
    assert source.raw.dtype == np.int16
    np.testing.assert_array_equal(source.raw[0], volume().astype(np.int16) - 1024)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("distance_mm", [2.0, -2.0, 0.7])
def test_every_orientation_is_the_volume_of_the_nifti_file_itk_writes(tmp_path, orientation, distance_mm):
    planes = series(volume(), distance_mm=distance_mm, orientation=ORIENTATIONS[orientation])
    folder = write_files(tmp_path / "scan", planes)
    source = read(folder)
    sitk.WriteImage(itk_image(folder), str(tmp_path / "scan.nii.gz"))
    nifti = read_source(str(tmp_path / "scan.nii.gz"), LIMIT)
    assert source.header.shape == nifti.header.shape
    np.testing.assert_allclose(source.header.affine, nifti.header.affine, atol=NIFTI_ROUNDING)
    np.testing.assert_array_equal(
        to_ras(source.raw[0], source.header.affine), to_ras(nifti.raw[0], nifti.header.affine)
    )


def test_a_case_is_the_same_volume_as_from_nifti(tmp_path, case_of):
    folder = write_files(tmp_path / "scan", series(volume()))
    image = itk_image(folder)
    sitk.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    sitk.WriteImage(image > 0, str(tmp_path / "label.nii.gz"))
    label = str(tmp_path / "label.nii.gz")
    volumes = [
        load_case(case_of(url, label=label), {1: "one"}, LIMIT)
        for url in (dicom.series_url(folder), str(tmp_path / "scan.nii.gz"))
    ]
    np.testing.assert_array_equal(volumes[0].image, volumes[1].image)
    np.testing.assert_array_equal(volumes[0].label, volumes[1].label)
    assert volumes[0].spacing_mm == volumes[1].spacing_mm == (2.0, 0.75, 0.5)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32"])
@pytest.mark.parametrize("rescale", [None, ("1", "0"), ("1", "-1024"), ("2.5", "-1")])
def test_types_and_rescaling_are_itks(tmp_path, dtype, rescale):
    planes = (volume() % 256 if dtype == "uint8" else volume()).astype(dtype)
    folder = write_files(tmp_path / "scan", series(planes, rescale=rescale))
    source, expected = read(folder), sitk.GetArrayFromImage(itk_image(folder))
    assert source.raw.dtype == expected.dtype
    np.testing.assert_array_equal(source.raw[0], expected)
    slope, intercept = (float(value) for value in rescale or ("1", "0"))
    np.testing.assert_array_equal(source.raw[0], planes.astype(np.float64) * slope + intercept)


def test_each_slice_has_its_own_rescaling(tmp_path):
    images = [
        changed(one, {0x0028_1053: slope})
        for one, slope in zip(series(volume(3)), ("1", "0.5", "2"), strict=True)
    ]
    source = read(write_files(tmp_path / "scan", images))
    slopes = np.array([1.0, 0.5, 2.0])[:, None, None]
    assert source.raw.dtype == np.float64
    np.testing.assert_array_equal(source.raw[0], volume(3) * slopes - 1024)


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_lossless_compressed_syntaxes(tmp_path, compressor):
    planes = volume(3, 64, 64).astype(np.int16) - 1024
    for index, plane in enumerate(planes):
        image = sitk.GetImageFromArray(plane[None])
        tags = {
            "0008|0060": "CT",
            "0020|000e": "1.2.3.4",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0032": f"0\\0\\{index * 3}",
            "0010|0010": CANARY,
        }
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetImageIO("GDCMImageIO")
        writer.SetUseCompression(True)
        writer.SetCompressor(compressor)
        writer.SetFileName(str(tmp_path / f"{9 - index}.dcm"))
        writer.Execute(image)
    source = read(str(tmp_path))
    np.testing.assert_array_equal(source.raw[0], planes)
    path = tmp_path / "8.dcm"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(InputError, match=r"^8.dcm: truncated: its compressed voxels have no end$"):
        read(str(tmp_path))


def test_a_remote_series_is_copied_and_the_copy_removed(tmp_path, temporary_folder):
    folder = write_files(tmp_path / "scan", series(volume()))
    remote = f"memory://{tmp_path.name}/scan"
    for path in files.walk(folder):
        files.write(files.join(remote, Path(path).name), Path(path).read_bytes())
    np.testing.assert_array_equal(read(remote).raw, read(folder).raw)
    assert list(temporary_folder.iterdir()) == []


def test_a_series_in_an_archive_is_read_in_place(tmp_path):
    folder = write_files(tmp_path / "scan", series(volume()))
    with tarfile.open(tmp_path / "scans.tar", "w") as archive:
        archive.add(folder, "p/s/scan")
        for path in sorted(Path(folder).iterdir()):
            archive.add(path, path.name)
    for inside in ("p/s/scan", ""):
        source = read_source(dicom.series_url(f"{tmp_path}/scans.tar!/{inside}"), LIMIT)
        np.testing.assert_array_equal(source.raw, read(folder).raw)


def test_a_little_roundness_of_positions_is_let_pass(tmp_path):
    images = series(volume(6), distance_mm=1.25)
    for index, elements in enumerate(images):
        rounded = f"10\\-20\\{30 + round(index * 1.25, 1):.1f}"
        images[index] = changed(elements, {0x0020_0032: rounded})
    source = read(write_files(tmp_path / "scan", images))
    assert source.header.shape == (6, 7, 6)
    assert source.header.affine[2, 2] == pytest.approx(1.25, abs=0.02)


def moved(index: int, position: str):
    return lambda images: [
        changed(one, {0x0020_0032: position}) if at == index else one for at, one in enumerate(images)
    ]


def every(changes: dict):
    return lambda images: [changed(one, changes) for one in images]


def one(changes: dict):
    return lambda images: [changed(images[0], changes), *images[1:]]


FAULTS = {
    "one image": (lambda images: images[:1], "scan: a series of one image (a localizer?); at least 2 are"),
    "missing slice": (
        lambda images: [*images[:2], *images[3:]],
        "scan: slices are 2 to 4 mm apart: one is missing, or the distances are irregular",
    ),
    "irregular": (moved(2, "10\\-20\\35"), "slices are 1 to 3 mm apart"),
    "same place": (moved(2, "10\\-20\\32"), "scan: two images of one series lie at the same place"),
    "all at one place": (
        every({0x0020_0032: "1\\2\\3"}),
        "scan: two images of one series lie at the same place",
    ),
    "tilted": (
        lambda images: [
            changed(element, {0x0020_0032: f"10\\{-20 + index}\\{30 + 2 * index}"})
            for index, element in enumerate(images)
        ],
        "scan: slices shift by up to 4 mm along the stack (gantry tilt of 26.6 degrees?); resample it",
    ),
    "aside": (moved(2, "14\\-20\\34"), "scan: slices shift by up to 4 mm along the stack"),
    "other orientation": (
        one({0x0020_0037: "1\\0\\0\\0\\0\\-1"}),
        "scan: images of different orientations in one series (a localizer?)",
    ),
    "other spacing": (
        one({0x0028_0030: "0.8\\0.5"}),
        "scan: images of different pixel spacings in one series",
    ),
    "no spacing": (
        every({0x0028_0030: "0\\0.5"}),
        "scan: images of different pixel spacings in one series, or",
    ),
    "not at right angles": (
        every({0x0020_0037: "1\\0\\0\\0.6\\0.8\\0"}),
        "scan: the orientation's axes are not at right angles, or not of length 1",
    ),
    "no length": (every({0x0020_0037: "0\\0\\0\\0\\0\\0"}), "not at right angles, or not of length 1"),
    "no position": (one({0x0020_0032: None}), "the image's position is missing or no 3 numbers"),
    "NaN position": (one({0x0020_0032: "1\\nan\\3"}), "the image's position is missing or no 3 numbers"),
    "no orientation": (one({0x0020_0037: None}), "the image's orientation is missing or no 6 numbers"),
    "far away": (
        lambda images: [
            changed(element, {0x0020_0032: f"0\\0\\{int(1e8) + 2 * index}"})
            for index, element in enumerate(images)
        ],
        "scan: the affine puts the volume 1e+08 mm away, which cannot be",
    ),
    "colour": (one({0x0028_0002: 3}), "not a plain grey image (MONOCHROME2); real numbers are needed"),
    "inverted": (every({0x0028_0004: "MONOCHROME1"}), "not a plain grey image (MONOCHROME2)"),
    "no rows": (one({0x0028_0010: 0}), "the image has no size"),
    "too large": (
        every({0x0028_0010: 65535, 0x0028_0011: 65535}),
        "scan: the header declares 65535 x 65535 x 5 voxels; max_voxels allows 1048576",
    ),
    "more than there is": (every({0x0028_0010: 8}), "truncated: holds 84 of 96 bytes of voxels"),
    "another type": (one({0x0028_0100: 32}), "truncated: holds 84 of 168 bytes of voxels"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_refuses_a_series(tmp_path, capfd, fault):
    change, reason = FAULTS[fault]
    folder = write_files(tmp_path / "scan", change(series(volume())))
    with pytest.raises(InputError, match=re.escape(reason)) as raised:
        read(folder)
    said = capfd.readouterr()
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 250
    assert CANARY not in str(raised.value)
    assert (said.out, said.err) == ("", "")


def test_mixed_sizes_are_refused(tmp_path):
    images = [*series(volume(3)), *series(volume(2, 9, 8), origin_mm=(10, -20, 36))]
    with pytest.raises(InputError, match=r"^scan: images of 2 sizes in one series \(6 x 7 and 8 x 9\)$"):
        read(write_files(tmp_path / "scan", images))


def test_an_object_of_several_frames_is_refused(tmp_path):
    elements = [*series(volume(2))[0], (0x0028_0008, "IS", "2")]
    folder = write_files(tmp_path / "scan", [elements])
    with pytest.raises(InputError, match=r": an object of several frames; convert it to one image a file$"):
        read(folder)


def test_a_cut_file_is_refused(tmp_path, capfd):
    folder = write_files(tmp_path / "scan", series(volume()), list("abcde"))
    data = Path(folder, "c").read_bytes()
    for end, reason in (
        (-10, r"^c: truncated: holds 74 of 84 bytes of voxels$"),
        (-84, r"^c: truncated: holds 0 of 84 bytes of voxels$"),
        (700, r"^c: not a DICOM file, damaged or truncated$"),
        (0, r"^scan: slices are 2 to 4 mm apart: one is missing"),
    ):
        Path(folder, "c").write_bytes(data[:end])
        with pytest.raises(InputError, match=reason):
            read(folder)
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


def test_what_itk_cannot_decode_is_one_line(tmp_path, capfd):
    images = series(volume(3))
    rubbish = [changed(one, {0x7FE0_0010: [b"\xff\xd8 no jpeg at all \xff\xd9"]}) for one in images]
    for index, syntax in enumerate(("1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90", "1.2.3.4")):
        folder = write_files(tmp_path / f"{index}", rubbish, syntax=syntax)
        with pytest.raises(InputError, match=r"^IM\d+: ITK cannot (read|decode) it: .") as raised:
            read(folder)
        assert "\n" not in str(raised.value)
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


def test_no_folder_at_all(tmp_path):
    for folder in (tmp_path / "gone", tmp_path):
        with pytest.raises(InputError, match=r": the folder holds no DICOM images of the case$"):
            read(str(folder))
