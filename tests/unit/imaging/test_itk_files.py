"""NRRD and MetaImage files: the same volumes as NIfTI, and the exact reason for what is refused."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from hssl_dist import files
from hssl_dist.errors import InputError
from hssl_dist.imaging import load_case
from hssl_dist.imaging.orientation import to_ras
from hssl_dist.imaging.source import read_source
from tests.itk_files import FORMATS, OBLIQUE, header_and_voxels, image_of, voxels, write_image

LIMIT = 1 << 20
DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")
NIFTI_ROUNDING = 1e-5
"""NIfTI keeps the affine as float32."""
HALF_TURNS = [
    tuple(float(x) for x in (np.eye(3)[list(axes)] * signs).ravel())
    for axes in itertools.permutations(range(3))
    for signs in ((1, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1))
]
DIRECTIONS = [*HALF_TURNS, OBLIQUE]


@pytest.mark.parametrize(("name", "compressed"), FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_is_read_as_it_is_written(tmp_path, name, compressed, dtype):
    path = write_image(tmp_path / name, image_of(voxels(dtype)), compressed)
    source = read_source(path, LIMIT)
    assert (source.name, source.header.shape, source.header.channels) == (name, (6, 5, 4), 1)
    assert (source.header.dtype, source.header.slope, source.header.intercept) == (np.dtype(dtype), 1.0, 0.0)
    assert source.raw.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(source.raw[0], sitk.GetArrayFromImage(sitk.ReadImage(path)))


@pytest.mark.parametrize(("name", "compressed"), FORMATS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_orientation_is_the_volume_of_the_nifti_file(tmp_path, name, compressed, direction):
    image = image_of(voxels(), direction=direction)
    source = read_source(write_image(tmp_path / name, image, compressed), LIMIT)
    nifti = read_source(write_image(tmp_path / "a.nii", image), LIMIT)
    np.testing.assert_allclose(source.header.affine, nifti.header.affine, atol=NIFTI_ROUNDING)
    np.testing.assert_array_equal(
        to_ras(source.raw[0], source.header.affine), to_ras(nifti.raw[0], nifti.header.affine)
    )


@pytest.mark.parametrize(("name", "compressed"), FORMATS)
def test_a_case_is_the_same_volume_as_from_nifti(tmp_path, case_of, name, compressed):
    image, label = image_of(voxels()), image_of((voxels() > 0).astype(np.uint8))
    expected = load_case(
        case_of(write_image(tmp_path / "i.nii", image), label=write_image(tmp_path / "l.nii.gz", label)),
        {1: "one"},
        LIMIT,
    )
    volume = load_case(
        case_of(
            write_image(tmp_path / f"i{name}", image, compressed),
            label=write_image(tmp_path / f"l{name}", label, compressed),
        ),
        {1: "one"},
        LIMIT,
    )
    np.testing.assert_array_equal(volume.image, expected.image)
    np.testing.assert_array_equal(volume.label, expected.label)
    assert volume.spacing_mm == expected.spacing_mm
    assert volume.geometry.oriented_shape == expected.geometry.oriented_shape


@pytest.mark.parametrize(("name", "compressed"), FORMATS)
def test_reads_from_a_url(tmp_path, name, compressed):
    path = Path(write_image(tmp_path / name, image_of(voxels()), compressed))
    files.write(f"memory://itk/{name}", path.read_bytes())
    np.testing.assert_array_equal(read_source(f"memory://itk/{name}", LIMIT).raw[0], voxels())


@pytest.fixture
def edited(tmp_path):
    """`edited(name, (old, new), compressed)`: the path of such a file, so changed in its header."""

    def build(name: str, change: tuple[str, str], compressed: bool = False) -> str:
        path = write_image(tmp_path / name, image_of(voxels()), compressed)
        header, body = header_and_voxels(path)
        old, new = (text.encode() for text in change)
        assert re.search(old, header), header
        Path(path).write_bytes(re.sub(old, new, header, count=1) + body)
        return path

    return build


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("right-anterior-superior", (1, 1, 1)),
        ("RAS", (1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
        ("left-posterior-superior", (-1, -1, 1)),
        ("LPS", (-1, -1, 1)),
    ],
)
def test_every_known_space_becomes_ras(edited, space, signs):
    source = read_source(edited("a.nrrd", ("left-posterior-superior", space)), LIMIT)
    columns = np.reshape(OBLIQUE, (3, 3)) * (1.5, 2.0, 3.0)
    np.testing.assert_allclose(source.header.affine[:3, :3], np.diag(signs) @ columns, atol=1e-12)
    np.testing.assert_allclose(source.header.affine[:3, 3], np.multiply(signs, (10, -20, 30)))


def test_windows_line_ends_and_unknown_fields_are_read_over(edited):
    for change in (
        (r"(?s)\n", "\r\n"),
        ("type:", "content: x\ntype:"),
        ("kinds", 'space units: "mm" "mm" ""\nkinds'),
        ("type:", "# sizes: 1 1 1\ntype:"),
    ):
        np.testing.assert_array_equal(read_source(edited("a.nrrd", change), LIMIT).raw[0], voxels())


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("a.nrrd", ("endian: little", "endian: big")),
        ("a.mha", ("BinaryDataByteOrderMSB = False", "BinaryDataByteOrderMSB = True")),
        ("a.mha", ("BinaryDataByteOrderMSB = False", "ElementByteOrderMSB = True")),
    ],
)
def test_reads_big_endian(edited, name, change):
    source = read_source(edited(name, change), LIMIT)
    np.testing.assert_array_equal(source.raw[0], voxels().byteswap())


def test_spacing_alone_is_kept(edited):
    plain = "sizes: 6 5 4\nspacings: 1 2 3\nencoding: raw\n"
    change = (r"(?s)space: .*space origin: .*?\n", plain)
    affine = read_source(edited("a.nrrd", change), LIMIT).header.affine
    np.testing.assert_array_equal(affine, np.diag([-1.0, -2.0, 3.0, 1.0]))


HEADER_FAULTS = {
    "huge": ("a.nrrd", ("sizes: .*", "sizes: 99999 99999 99999"), "max_voxels allows 1048576"),
    "huge meta": ("a.mha", ("DimSize = .*", "DimSize = 99999 99999 99999"), "max_voxels allows 1048576"),
    "no size": (
        "a.nrrd",
        ("sizes: .*\n", ""),
        "3 dimensions, 0 sizes; 3 are needed, with one number a voxel",
    ),
    "no size meta": ("a.mha", ("DimSize = .*\n", ""), "3 dimensions, 0 sizes; 3 are needed"),
    "zero size": ("a.nrrd", ("sizes: .*", "sizes: 6 0 4"), "declares 6 x 0 x 4; every size must be positive"),
    "zero size meta": (
        "a.mha",
        ("DimSize = .*", "DimSize = 6 0 4"),
        "declares 6 x 0 x 4; every size must be",
    ),
    "negative size": ("a.mha", ("DimSize = .*", "DimSize = 6 -5 4"), "declares 6 x -5 x 4"),
    "flat": (
        "a.nrrd",
        (r"(?s)dimension: 3\n.*kinds: .*?\n", "dimension: 2\nsizes: 30 4\n"),
        "2 dimensions, 2 sizes; 3 are needed",
    ),
    "four dimensions": (
        "a.nrrd",
        (r"(?s)dimension: 3\n.*kinds: .*?\n", "dimension: 4\nsizes: 6 5 2 2\n"),
        "4 dimensions, 4 sizes; 3 are needed",
    ),
    "four dimensions meta": ("a.mha", ("NDims = 3", "NDims = 4"), "4 dimensions, 3 sizes; 3 are needed"),
    "vectors": (
        "a.nrrd",
        (
            r"(?s)dimension: 3\n(space.*?\n)sizes: .*kinds: .*?\n",
            r"dimension: 4\n\1sizes: 3 6 5 4\nspace directions: none (1,0,0) (0,1,0) (0,0,1)\n"
            r"kinds: vector domain domain domain\n",
        ),
        "4 dimensions, 4 sizes; 3 are needed, with one number a voxel",
    ),
    "colour": (
        "a.mha",
        ("ElementType = MET_SHORT", "ElementNumberOfChannels = 3\nElementType = MET_UCHAR"),
        "voxels are vector of 8-bit unsigned integer of 3; real numbers are needed",
    ),
    "NaN direction": (
        "a.nrrd",
        (r"space directions: .*", "space directions: (nan,nan,nan) (0,1,0) (0,0,1)"),
        "the header's 'space directions' has an entry that is no finite number",
    ),
    "NaN matrix": (
        "a.mha",
        ("TransformMatrix = .*", "TransformMatrix = nan 0 0 0 1 0 0 0 1"),
        "'TransformMatrix' has an entry that is no",
    ),
    "beyond all measure": (
        "a.mha",
        ("TransformMatrix = .*", "TransformMatrix = 1 0 0 0 1 0 0 1e308 1"),
        "the affine has NaN or infinite entries",
    ),
    "singular": (
        "a.nrrd",
        (r"space directions: .*", "space directions: (1,0,0) (1,0,0) (0,0,1)"),
        "the affine is singular: its voxels have no volume",
    ),
    "singular meta": (
        "a.mha",
        ("TransformMatrix = .*", "TransformMatrix = 1 0 0 1 0 0 0 0 1"),
        "the affine is singular",
    ),
    "nearly singular": (
        "a.nrrd",
        (r"space directions: .*", "space directions: (1,0,0) (1,0.0001,0) (0,0,1)"),
        "the affine is singular: its voxels have no volume",
    ),
    "zero spacing": ("a.mha", ("ElementSpacing = .*", "ElementSpacing = 0 1 1"), "the affine is singular"),
    "NaN spacing": (
        "a.mha",
        ("ElementSpacing = .*", "ElementSpacing = nan 1 1"),
        "'ElementSpacing' has an entry",
    ),
    "far away": ("a.mha", ("Offset = .*", "Offset = 1e9 0 0"), "the affine puts the volume 1e+09 mm away"),
    "far away nrrd": ("a.nrrd", ("space origin: .*", "space origin: (1e9,0,0)"), "1e+09 mm away"),
    "tiny": ("a.mha", ("ElementSpacing = .*", "ElementSpacing = 1e-20 1 1"), "which cannot be"),
    "scanner space": (
        "a.nrrd",
        ("left-posterior-superior", "scanner-xyz"),
        "unknown space; left-posterior-superior, right-anterior-superior, left-anterior-superior are known",
    ),
    "detached": (
        "a.nrrd",
        ("encoding: raw", "encoding: raw\ndata file: ../../secret.raw"),
        "a header without its voxels; convert it to .nrrd",
    ),
    "detached list": (
        "a.nrrd",
        ("encoding: raw", "encoding: raw\ndatafile: LIST"),
        "a header without its voxels; convert it to .nrrd",
    ),
    "detached meta": (
        "a.mha",
        ("ElementDataFile = LOCAL", "ElementDataFile = /etc/passwd"),
        "a header without its voxels; convert it to .mha",
    ),
    "metres": (
        "a.nrrd",
        ("kinds", 'space units: "m" "m" "m"\nkinds'),
        "another unit; convert it to millimetres",
    ),
    "centimetres": ("a.mha", ("NDims", "DistanceUnits = cm\nNDims"), "lengths in another unit"),
    "skipped": ("a.nrrd", ("encoding: raw", "encoding: raw\nbyte skip: -1"), "skips what stands before"),
    "skipped meta": ("a.mha", ("NDims", "HeaderSize = -1\nNDims"), "skips what stands before the voxels"),
    "bzip2": ("a.nrrd", ("encoding: raw", "encoding: bzip2"), "'encoding' must be one of: raw, gzip, gz"),
    "no encoding": ("a.nrrd", ("encoding: raw\n", ""), "'encoding' must be one of: raw, gzip, gz"),
    "text": ("a.mha", ("BinaryData = True", "BinaryData = False"), "the voxels are written as text"),
    "twice": ("a.nrrd", ("sizes: (.*)", r"sizes: \1\nsizes: \1"), "the header has 'sizes' twice"),
    "twice meta": ("a.mha", ("DimSize = (.*)", r"DimSize = \1\nDimSize = \1"), "has 'DimSize' twice"),
    "unknown type": ("a.nrrd", ("type: short", "type: triple"), 'couldn\'t parse type "triple"'),
    "unknown type meta": (
        "a.mha",
        ("MET_SHORT", "MET_TRIPLE"),
        "the header makes no sense to ITK: Unknown PixelType",
    ),
    "magic": ("a.nrrd", ("NRRD", "NRRX"), "not an NRRD file; convert it to .nrrd or .nii.gz"),
    "no equals": ("a.mha", ("ObjectType = Image", "ObjectType"), "not a MetaImage; convert it to .mha"),
    "longer": (
        "a.nrrd",
        ("sizes: .*", "sizes: 6 5 5"),
        "truncated: holds 240 of the 300 bytes its header declares",
    ),
    "longer meta": (
        "a.mha",
        ("DimSize = .*", "DimSize = 6 5 5"),
        "truncated: holds 240 of the 300 bytes its header declares",
    ),
}


@pytest.mark.parametrize("fault", HEADER_FAULTS)
def test_refuses_a_header(edited, capfd, fault):
    name, change, reason = HEADER_FAULTS[fault]
    with pytest.raises(InputError, match=re.escape(reason)) as raised:
        read_source(edited(name, change), LIMIT)
    assert str(raised.value).startswith(f"{name}: ")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 250
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


@pytest.mark.parametrize("name", ["a.nhdr", "a.mhd"])
def test_a_header_without_its_voxels_is_refused(tmp_path, name):
    path = write_image(tmp_path / name, image_of(voxels()))
    whole = {"a.nhdr": ".nrrd", "a.mhd": ".mha"}[name]
    with pytest.raises(InputError, match=rf"^{name}: a header without its voxels; convert it to \{whole}$"):
        read_source(path, LIMIT)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_no_file_at_all(tmp_path, name):
    with pytest.raises(InputError, match=rf"^{name}: there is no such file; it belongs to the case$"):
        read_source(str(tmp_path / name), LIMIT)
    for data, reason in ((b"", "the file is empty"), (b"NDims = 3\n", "not an NRRD|ends within its header")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=rf"^{name}: .*({reason})"):
            read_source(str(tmp_path / name), LIMIT)
    (tmp_path / name).write_bytes(b"x = y\n" * 1_000_000)
    with pytest.raises(InputError, match=rf"^{name}: (not an NRRD file|no end of the header within)"):
        read_source(str(tmp_path / name), LIMIT)


def test_itk_is_shown_only_the_geometry(tmp_path):
    tags = {"PatientName": "CANARY", "content": "CANARY"}
    for name in ("a.nrrd", "a.mha"):
        path = write_image(tmp_path / name, image_of(voxels()), tags=tags)
        header, body = header_and_voxels(path)
        assert b"CANARY" in header
        broken = re.sub(rb"(?m)^(sizes: |DimSize = ).*", rb"\1CANARIES", header)
        Path(path).write_bytes(broken + body)
        with pytest.raises(InputError) as raised:
            read_source(path, LIMIT)
        assert "PatientName" not in str(raised.value)


def test_without_simpleitk_the_remedy_is_named(tmp_path):
    path = write_image(tmp_path / "a.nrrd", image_of(voxels()))
    code = (
        "import sys; sys.modules['SimpleITK'] = None\n"
        "from hssl_dist.imaging.source import read_source\n"
        "from hssl_dist.errors import InputError\n"
        "try: read_source(sys.argv[1], 1000)\n"
        "except InputError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert said.stdout == (
        "a.nrrd: SimpleITK is needed to read it; install it with: pip install 'hssl-dist[itk]'\n"
    )
