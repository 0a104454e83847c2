"""What the file reader accepts, and the exact reason for what it refuses."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest

from hssl_dist import files
from hssl_dist.errors import InputError
from hssl_dist.imaging.nifti import read_nifti, write_nifti

LIMIT = 1 << 20
ARRAY = np.arange(24, dtype=np.int16).reshape(2, 3, 4)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_reads_voxels_with_axes_reversed(write, name, kind):
    source = read_nifti(write(name, ARRAY, kind=kind), LIMIT)
    assert source.header.shape == (2, 3, 4)
    np.testing.assert_array_equal(source.raw[0], ARRAY.T)


def test_reads_big_endian(tmp_path):
    image = nibabel.Nifti1Image(ARRAY, np.eye(4), nibabel.Nifti1Header(endianness=">"))
    (tmp_path / "a.nii").write_bytes(image.to_bytes())
    np.testing.assert_array_equal(read_nifti(str(tmp_path / "a.nii"), LIMIT).raw[0], ARRAY.T)


def test_a_qfac_of_zero_counts_as_one(write):
    fields = {"sform_code": 0, "qform_code": 1, "pixdim": [0, 2, 3, 4, 1, 1, 1, 1]}
    affine = read_nifti(write("a.nii", ARRAY, **fields), LIMIT).header.affine
    np.testing.assert_array_equal(affine, np.diag([2.0, 3.0, 4.0, 1.0]))


def test_without_any_orientation_the_spacing_is_kept(write):
    fields = {"sform_code": 0, "qform_code": 0, "pixdim": [1, 2, 3, 4, 1, 1, 1, 1]}
    affine = read_nifti(write("a.nii", ARRAY, **fields), LIMIT).header.affine
    np.testing.assert_array_equal(np.abs(affine[:3, :3]), np.diag([2.0, 3.0, 4.0]))


def test_reads_a_gzip_of_several_members_with_padding(write, tmp_path):
    data = Path(write("a.nii", ARRAY)).read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(data[:360]) + gzip.compress(data[360:]) + b"\0" * 100)
    np.testing.assert_array_equal(read_nifti(str(tmp_path / "b.nii.gz"), LIMIT).raw[0], ARRAY.T)


def test_reads_from_a_url(write):
    files.write("memory://nifti/a.nii.gz", Path(write("a.nii.gz", ARRAY)).read_bytes())
    np.testing.assert_array_equal(read_nifti("memory://nifti/a.nii.gz", LIMIT).raw[0], ARRAY.T)


def test_what_is_written_reads_back_and_is_the_same_bytes_again(tmp_path):
    affine = np.diag([0.5, 0.5, 3.0, 1.0])
    for name in ("a.nii.gz", "b.nii.gz", "c.nii"):
        write_nifti(tmp_path / name, ARRAY, affine)
        source = read_nifti(str(tmp_path / name), LIMIT)
        np.testing.assert_array_equal(source.raw[0], ARRAY.T)
        np.testing.assert_array_equal(source.header.affine, affine)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


HEADER_FAULTS = {
    "zero size": (
        {"dim": [3, 2, 0, 4, 1, 1, 1, 1]},
        "declares a size of 2 x 0 x 4; every size must be positive",
    ),
    "negative size": ({"dim": [3, 2, -3, 4, 1, 1, 1, 1]}, "declares a size of 2 x -3 x 4"),
    "too large": (
        {"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]},
        f"declares 32767 x 32767 x 32767 voxels; max_voxels allows {LIMIT}",
    ),
    "flat": ({"dim": [2, 2, 3, 1, 1, 1, 1, 1]}, "2 dimensions (2 x 3); 3, or 4 with channels, are needed"),
    "vectors": ({"dim": [5, 2, 3, 1, 1, 4, 1, 1]}, "5 dimensions (2 x 3 x 1 x 1 x 4); 3, or 4"),
    "no dimensions": ({"dim": [0] * 8}, "declares 0 dimensions; 3, or 4 with channels, are needed"),
    "NaN slope": ({"scl_slope": np.nan}, "intensity scaling (scl_slope, scl_inter) is (nan, 0)"),
    "infinite intercept": ({"scl_slope": 1, "scl_inter": np.inf}, "is (1, inf)"),
    "NaN affine": ({"srow_x": [np.nan, 0, 0, 0]}, "the affine has NaN or infinite entries"),
    "singular affine": ({"srow_x": [0, 1, 0, 0]}, "the affine is singular: its voxels have no volume"),
    "zero affine": ({"srow_x": [0, 0, 0, 0]}, "the affine is singular: its voxels have no volume"),
    "tiny voxels": (
        {"srow_x": [1e-20, 0, 0, 0]},
        "the affine makes voxels of 1e-20 x 1 x 1 mm, which cannot be",
    ),
    "far away": ({"srow_x": [1, 0, 0, 1e9]}, "the affine puts the volume 1e+09 mm away"),
    "bad quaternion": (
        {"sform_code": 0, "qform_code": 1, "quatern_b": 2, "pixdim": [1] * 8},
        "the header has no usable orientation: ",
    ),
    "metres": ({"xyzt_units": 1}, "gives lengths in metres; convert it to millimetres"),
    "micrometres": ({"xyzt_units": 3 + 8}, "gives lengths in micrometres; convert it to millimetres"),
    "unknown type": ({"datatype": 999}, "unknown voxel type (NIfTI datatype 999)"),
    "RGB": ({"datatype": 128}, "voxels are colour (RGB); real numbers are needed"),
    "complex": ({"datatype": 32}, "voxels are complex; real numbers are needed"),
    "voxels nowhere": ({"vox_offset": 1e30}, "puts the voxels at byte 1e+30, which cannot be"),
    "voxels in the header": ({"vox_offset": 0}, "puts the voxels at byte 0, which cannot be"),
    "pair": ({"magic": b"ni1"}, "a header without its voxels (.hdr/.img pair); convert it to .nii.gz"),
    "truncated": (
        {"dim": [3, 2, 3, 5, 1, 1, 1, 1]},
        "truncated: holds 400 of the 412 bytes its header declares",
    ),
}


@pytest.mark.parametrize("fault", HEADER_FAULTS)
def test_refuses_a_header(write, fault):
    fields, reason = HEADER_FAULTS[fault]
    for name in ("a.nii", "a.nii.gz"):
        with pytest.raises(InputError, match=re.escape(reason)) as raised:
            read_nifti(write(name, ARRAY, **fields), LIMIT)
        assert str(raised.value).startswith(f"{name}: ")
        assert "\n" not in str(raised.value)


def test_a_size_is_refused_before_any_voxel_is_read(tmp_path):
    header = nibabel.Nifti1Header()
    header.set_data_shape((1024, 1024, 1024))
    header["magic"], header["vox_offset"] = b"n+1", 352
    (tmp_path / "a.nii").write_bytes(header.binaryblock)
    with pytest.raises(InputError, match="max_voxels allows 1048576"):
        read_nifti(str(tmp_path / "a.nii"), LIMIT)


def _with(data: bytes, position: int, value: int) -> bytes:
    return data[:position] + bytes([value]) + data[position + 1 :]


BYTE_FAULTS = {
    "empty": (lambda data: b"", "the file is empty"),
    "no NIfTI": (lambda data: b"PK\x03\x04" + data, "not a NIfTI file; convert it to .nii.gz"),
    "short header": (
        lambda data: gzip.compress(gzip.decompress(data)[:100]),
        "truncated: ends within its header, after 100 bytes",
    ),
    "truncated gzip": (lambda data: data[:-20], "truncated gzip: it ends before its checksum"),
    "no checksum": (lambda data: data[:-8], "truncated gzip: it ends before its checksum"),
    "bad checksum": (lambda data: _with(data, -8, data[-8] ^ 1), "corrupt gzip: "),
    "bad length": (lambda data: _with(data, -1, data[-1] ^ 1), "corrupt gzip: "),
    "trailing rubbish": (lambda data: data + b"rubbish", "7 bytes after its end that are no gzip"),
    "bomb": (
        lambda data: gzip.compress(gzip.decompress(data) + bytes(50_000_000)),
        "holds more than the 16352 bytes its header declares",
    ),
    "endless tail": (lambda data: data + bytes(1_000_000), "holds more than the 16352 bytes"),
}


@pytest.mark.parametrize("fault", BYTE_FAULTS)
def test_refuses_bytes(write, fault):
    path = write("a.nii.gz", np.random.default_rng(0).integers(0, 99, (20, 20, 20), dtype=np.int16))
    damage, reason = BYTE_FAULTS[fault]
    Path(path).write_bytes(damage(Path(path).read_bytes()))
    with pytest.raises(InputError, match=re.escape(reason)):
        read_nifti(path, LIMIT)


def test_every_flipped_bit_of_the_voxels_is_noticed(write):
    path = Path(write("a.nii.gz", np.random.default_rng(0).integers(0, 99, (9, 9, 9), dtype=np.int16)))
    data = path.read_bytes()
    for position in range(200, len(data), 37):
        path.write_bytes(_with(data, position, data[position] ^ 4))
        with pytest.raises(InputError, match="gzip"):
            read_nifti(str(path), LIMIT)


def test_a_missing_file_or_a_folder_is_no_volume(tmp_path):
    with pytest.raises(InputError, match=r"^gone.nii.gz: there is no such file; it belongs to the case$"):
        read_nifti(str(tmp_path / "gone.nii.gz"), LIMIT)
    with pytest.raises(InputError, match=r"cannot be read: Is a directory$"):
        read_nifti(str(tmp_path), LIMIT)
