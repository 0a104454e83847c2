"""A label map has its source's grid to the bit, and its voxels where the source has them."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest

from hssl_dist.errors import InputError
from hssl_dist.imaging import ChannelRecipe, Recipe, label_map, load_case, prepare, restore_scores
from hssl_dist.records import Case
from tests.itk_files import OBLIQUE, image_of, write_image

SHAPE = (7, 9, 6)
SPACING_MM = (0.7, 1.3, 3.1)
ORIENTATIONS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]


def rotation(degrees=(11.0, -17.0, 8.0)) -> np.ndarray:
    a, b, c = np.deg2rad(degrees)
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return z @ y @ x


def affine_of(order=(0, 1, 2), signs=(1.0, 1.0, 1.0), oblique=True) -> np.ndarray:
    """Axes in this order and direction, anisotropic, and turned a little if `oblique`."""
    affine = np.eye(4)
    turned = rotation() if oblique else np.eye(3)
    affine[:3, :3] = (turned @ np.eye(3)[:, list(order)]) * signs * SPACING_MM
    affine[:3, 3] = (-91.3, 17.7, 1234.56)
    return affine


def bright_image(shape=SHAPE) -> np.ndarray:
    """Bright voxels, in no symmetric pattern, in the dark; the border is bright somewhere on every side."""
    rng = np.random.default_rng(sum(shape))
    return np.where(rng.random(shape) < 0.4, 900, 100).astype(np.int16) + rng.integers(0, 9, shape).astype(
        np.int16
    )


def predicted(url: str, channels: int = 1) -> bytes:
    """The label map of a network that calls the bright voxels of the first channel 1."""
    case = Case("d", "c", "c", (url,), None, ("mr",) * channels)
    volume = load_case(case, {}, 1 << 20)
    recipe = Recipe(
        spacing_mm=volume.spacing_mm, channels=(ChannelRecipe(rule="mr"),) * channels, classes={}, storage={}
    )
    stored, _ = prepare(volume, recipe)
    scores = np.stack((-stored.image[0], stored.image[0]))
    middle = (stored.image[0].min() + stored.image[0].max()) / 2
    scores[0] += 2 * middle
    return label_map(restore_scores([scores], stored.geometry), stored.geometry, url)


def check(found_path: Path, source: nibabel.Nifti1Image, bright: np.ndarray) -> nibabel.Nifti1Image:
    found = nibabel.load(found_path)
    assert found.shape == source.shape[:3]
    assert found.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(found.affine, source.affine)
    for get in ("get_qform", "get_sform"):
        (mine, code), (theirs, expected) = (
            getattr(image.header, get)(coded=True) for image in (found, source)
        )
        assert code == expected
        np.testing.assert_array_equal(mine, theirs)
    assert found.header.get_zooms() == source.header.get_zooms()[:3]
    assert found.header.get_xyzt_units()[0] == source.header.get_xyzt_units()[0]
    assert type(found) is type(source)
    np.testing.assert_array_equal(np.asarray(found.dataobj), bright)
    return found


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_every_orientation_comes_back(tmp_path, order, signs, oblique):
    affine = affine_of(order, signs, oblique)
    image = nibabel.Nifti1Image(bright_image(), affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "s.nii.gz")
    (tmp_path / "p.nii.gz").write_bytes(predicted(str(tmp_path / "s.nii.gz")))
    source = nibabel.load(tmp_path / "s.nii.gz")
    assert len(set(nibabel.affines.voxel_sizes(source.affine).round(3))) == 3
    check(tmp_path / "p.nii.gz", source, bright_image() > 500)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize(("qform", "sform"), [(1, 0), (0, 1), (1, 2), (2, 4), (3, 1), (0, 0)])
def test_both_affines_and_their_codes_are_the_source_s(tmp_path, kind, qform, sform):
    image = kind(bright_image(), affine_of())
    image.header.set_qform(affine_of(signs=(-1, 1, 1)), qform)
    image.header.set_sform(affine_of(), sform)
    nibabel.save(image, tmp_path / "s.nii")
    (tmp_path / "p.nii.gz").write_bytes(predicted(str(tmp_path / "s.nii")))
    check(tmp_path / "p.nii.gz", nibabel.load(tmp_path / "s.nii"), bright_image() > 500)


@pytest.mark.parametrize("fields", [{"qfac": 0.0}, {"xyzt_units": 0}, {"xyzt_units": 10}, {"big": True}])
def test_odd_headers_are_kept_as_they_are(tmp_path, fields):
    image = nibabel.Nifti1Image(bright_image(), affine_of())
    image.header.set_qform(affine_of(), 1)
    image.header.set_sform(None, 0)
    header = image.header.as_byteswapped(">") if fields.get("big") else image.header
    array = header.structarr.copy()
    array["magic"], array["vox_offset"] = b"n+1", 352
    array["scl_slope"], array["scl_inter"] = 1, 0
    if "qfac" in fields:
        array["pixdim"][0] = fields["qfac"]
    array["xyzt_units"] = fields.get("xyzt_units", 2)
    voxels = bright_image().astype(">i2" if fields.get("big") else "<i2")
    (tmp_path / "s.nii").write_bytes(array.tobytes() + bytes(4) + voxels.tobytes(order="F"))
    (tmp_path / "p.nii.gz").write_bytes(predicted(str(tmp_path / "s.nii")))
    check(tmp_path / "p.nii.gz", nibabel.load(tmp_path / "s.nii"), bright_image() > 500)


def test_channels_of_a_4d_file_become_one_label(tmp_path):
    image = nibabel.Nifti1Image(np.stack((bright_image(), bright_image()[::-1]), axis=-1), affine_of())
    nibabel.save(image, tmp_path / "s.nii.gz")
    (tmp_path / "p.nii.gz").write_bytes(predicted(str(tmp_path / "s.nii.gz"), channels=2))
    check(tmp_path / "p.nii.gz", nibabel.load(tmp_path / "s.nii.gz"), bright_image() > 500)


def test_nothing_else_of_the_header_is_taken_over(tmp_path):
    image = nibabel.Nifti1Image(bright_image(), affine_of())
    for field in ("descrip", "aux_file", "db_name", "intent_name"):
        image.header[field] = b"JaneDoe"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"JaneDoe"))
    nibabel.save(image, tmp_path / "s.nii")
    assert b"JaneDoe" in (tmp_path / "s.nii").read_bytes()
    (tmp_path / "p.nii.gz").write_bytes(predicted(str(tmp_path / "s.nii")))
    found = check(tmp_path / "p.nii.gz", nibabel.load(tmp_path / "s.nii"), bright_image() > 500)
    assert b"JaneDoe" not in found.to_bytes()


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_other_formats_give_their_affine_to_both(tmp_path, ending):
    array = bright_image().transpose()
    write_image(tmp_path / f"s{ending}", image_of(array, direction=OBLIQUE), True)
    (tmp_path / "p.nii.gz").write_bytes(predicted(str(tmp_path / f"s{ending}")))
    found = nibabel.load(tmp_path / "p.nii.gz")
    case = Case("d", "c", "c", (str(tmp_path / f"s{ending}"),), None, ("mr",))
    expected = np.asarray(load_case(case, {}, 1 << 20).geometry.original_affine)
    np.testing.assert_array_equal(found.affine, expected.astype(np.float32))
    np.testing.assert_allclose(found.header.get_qform(), expected, atol=1e-4)
    assert (int(found.header["qform_code"]), int(found.header["sform_code"])) == (1, 1)
    np.testing.assert_array_equal(np.asarray(found.dataobj), bright_image() > 500)


def test_a_source_that_was_replaced_meanwhile_is_refused(tmp_path):
    nibabel.save(nibabel.Nifti1Image(bright_image(), affine_of()), tmp_path / "s.nii.gz")
    case = Case("d", "c", "c", (str(tmp_path / "s.nii.gz"),), None, ("mr",))
    geometry = load_case(case, {}, 1 << 20).geometry
    nibabel.save(nibabel.Nifti1Image(bright_image((7, 9, 5)), affine_of()), tmp_path / "s.nii.gz")
    with pytest.raises(InputError) as caught:
        label_map(np.zeros(SHAPE, np.uint8), geometry, case.images[0])
    assert str(caught.value) == "s.nii.gz: its shape is (7, 9, 5) now, it was (7, 9, 6); run it again"
