"""Loading a case: orientation, intensities, channels, labels, and what is quarantined."""

from __future__ import annotations

import itertools
import re

import nibabel
import numpy as np
import pytest
from nibabel import orientations

from hssl_dist.errors import InputError
from hssl_dist.imaging import load_case
from hssl_dist.records import Scaling
from tests.restoring import restore

LIMIT = 1 << 20
CLASSES = {1: "one", 2: "two"}
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(-100, 100, (3, 4, 5)).astype(np.int16)
LABEL = RNG.integers(0, 3, (3, 4, 5)).astype(np.uint8)
ORIENTATIONS = [
    np.array([[axis, flip] for axis, flip in zip(axes, flips, strict=True)])
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


def oriented_file(array_ras, affine_ras, ornt):
    """The same voxels in the same places, with the file's axes in another order and direction."""
    image = nibabel.Nifti1Image(array_ras, affine_ras).as_reoriented(ornt)
    return np.asarray(image.dataobj), image.affine


@pytest.mark.parametrize("ornt", ORIENTATIONS, ids=lambda ornt: "".join(orientations.ornt2axcodes(ornt)))
def test_all_48_orientations_load_alike_and_go_back_exactly(write, case_of, ornt):
    tilt = nibabel.eulerangles.euler2mat(0.1, -0.15, 0.2)
    affine_ras = nibabel.affines.from_matvec(tilt @ np.diag([0.5, 1.0, 3.0]), [10, -20, 30])
    image, affine = oriented_file(IMAGE, affine_ras, ornt)
    label, _ = oriented_file(LABEL, affine_ras, ornt)

    volume = load_case(
        case_of(write("i.nii", image, affine), label=write("l.nii", label, affine)), CLASSES, LIMIT
    )

    np.testing.assert_array_equal(volume.image[0], IMAGE.T)
    np.testing.assert_array_equal(volume.label, LABEL.T)
    assert volume.spacing_mm == (3.0, 1.0, 0.5)
    assert volume.geometry.original_shape == image.shape
    np.testing.assert_allclose(volume.geometry.original_affine, affine, atol=1e-5)
    np.testing.assert_array_equal(restore(volume.label, volume.geometry), label)


def test_voxels_stay_as_narrow_as_they_are_and_in_one_piece(write, case_of):
    flipped = np.diag([-1.0, -1.0, 2.0, 1.0])
    volume = load_case(
        case_of(write("i.nii", IMAGE, flipped), label=write("l.nii", LABEL, flipped)), CLASSES, LIMIT
    )
    assert volume.image.dtype == IMAGE.dtype
    assert volume.label.dtype == np.uint8
    assert volume.image.flags.c_contiguous
    assert volume.label.flags.c_contiguous


def test_slope_and_intercept_are_applied(write, case_of):
    volume = load_case(case_of(write("i.nii", IMAGE, scl_slope=0.5, scl_inter=-1024)), CLASSES, LIMIT)
    assert volume.image.dtype == IMAGE.dtype
    np.testing.assert_array_equal(volume.scaling.values(volume.image[0]), IMAGE.T * 0.5 - 1024)


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.float64])
def test_wide_voxels_become_float32(write, case_of, dtype):
    volume = load_case(
        case_of(write("i.nii", IMAGE.astype(dtype), scl_slope=0.5, scl_inter=3)), CLASSES, LIMIT
    )
    assert volume.image.dtype == np.float32
    assert volume.scaling == Scaling()
    np.testing.assert_array_equal(volume.image[0], IMAGE.T * 0.5 + 3)


def test_channels_scaled_or_typed_differently_become_float32(write, case_of):
    names = [write("0.nii", IMAGE), write("1.nii", IMAGE, scl_slope=2), write("2.nii", IMAGE.astype(np.int8))]
    volume = load_case(case_of(*names, modalities=("mr",) * 3), CLASSES, LIMIT)
    assert volume.image.dtype == np.float32
    np.testing.assert_array_equal(volume.image, np.stack([IMAGE.T, 2.0 * IMAGE.T, IMAGE.T]))


def test_slope_zero_means_unscaled(write, case_of):
    volume = load_case(case_of(write("i.nii", IMAGE, scl_slope=0, scl_inter=7)), CLASSES, LIMIT)
    np.testing.assert_array_equal(volume.image[0], IMAGE.T)


def test_channels_come_from_a_4d_file_or_from_files(write, case_of):
    both = np.stack([IMAGE, IMAGE[::-1]], axis=3)
    expected = np.stack([IMAGE.T, IMAGE[::-1].T])
    modalities = ("mr", "mr")
    one = load_case(case_of(write("b.nii", both), modalities=modalities), CLASSES, LIMIT)
    two = load_case(
        case_of(write("0.nii", both[..., 0]), write("1.nii", both[..., 1]), modalities=modalities),
        CLASSES,
        LIMIT,
    )
    np.testing.assert_array_equal(one.image, expected)
    np.testing.assert_array_equal(two.image, expected)


def test_a_fourth_dimension_of_one_is_a_3d_image(write, case_of):
    volume = load_case(case_of(write("i.nii", IMAGE[..., None])), CLASSES, LIMIT)
    np.testing.assert_array_equal(volume.image[0], IMAGE.T)


def test_an_empty_label_and_whole_floats_are_fine(write, case_of):
    image = write("i.nii", IMAGE)
    empty = load_case(case_of(image, label=write("e.nii", 0 * LABEL)), CLASSES, LIMIT)
    floats = load_case(case_of(image, label=write("f.nii", LABEL.astype(np.float32) + 4e-4)), CLASSES, LIMIT)
    scaled = load_case(
        case_of(image, label=write("s.nii", LABEL * np.uint8(2), scl_slope=0.5, scl_inter=0)), CLASSES, LIMIT
    )
    assert not empty.label.any()
    np.testing.assert_array_equal(floats.label, LABEL.T)
    np.testing.assert_array_equal(scaled.label, LABEL.T)


def test_a_label_may_lie_a_twentieth_of_a_voxel_off(write, case_of):
    image, shift = write("i.nii", IMAGE), np.eye(4)
    shift[0, 3] = 0.05
    volume = load_case(case_of(image, label=write("l.nii", LABEL, shift)), CLASSES, LIMIT)
    np.testing.assert_array_equal(volume.label, LABEL.T)


def spoilt(value):
    array = IMAGE.astype(np.float32)
    array[1, 2, 3] = value
    return array


IMAGE_FAULTS = {
    "NaN": (spoilt(np.nan), "i.nii: 1 of 60 voxels are NaN or infinite"),
    "infinity": (spoilt(-np.inf), "i.nii: 1 of 60 voxels are NaN or infinite"),
    "beyond float32": (spoilt(0) * np.float64(1e300), "voxels are NaN or infinite"),
    "constant": (np.full((3, 4, 5), 7, np.int16), "i.nii: the image is constant: every voxel is 7"),
    "4D": (
        np.zeros((3, 4, 5, 2), np.int16),
        "i.nii: the image has 2 channels (4th dimension), but 1 channel is expected (mr)",
    ),
}


@pytest.mark.parametrize("fault", IMAGE_FAULTS)
def test_refuses_an_image(write, case_of, fault):
    array, reason = IMAGE_FAULTS[fault]
    with pytest.raises(InputError, match=re.escape(reason)):
        load_case(case_of(write("i.nii", array)), CLASSES, LIMIT)


def test_refuses_channels_that_do_not_fit(write, case_of):
    pair = ("mr", "mr")
    with pytest.raises(InputError, match=r"^0.nii: the image has one channel, but 2 channels are expec"):
        load_case(case_of(write("0.nii", IMAGE), modalities=pair), CLASSES, LIMIT)
    with pytest.raises(InputError, match=re.escape("1.nii: shape (2, 4, 5) differs from (3, 4, 5) of 0.nii")):
        load_case(case_of(write("0.nii", IMAGE), write("1.nii", IMAGE[1:]), modalities=pair), CLASSES, LIMIT)
    both = write("1.nii", np.stack([IMAGE, IMAGE], axis=3))
    with pytest.raises(InputError, match=r"^1.nii: 2 channels in a file that is one channel$"):
        load_case(case_of(write("0.nii", IMAGE), both, modalities=pair), CLASSES, LIMIT)
    with pytest.raises(InputError, match=re.escape("0.nii: 2 channels of (3, 4, 5) exceed max_voxels 100")):
        load_case(case_of(write("0.nii", IMAGE), write("1.nii", IMAGE), modalities=pair), CLASSES, 100)


def test_all_channels_of_a_missing_file_are_one_reason(write, case_of, tmp_path):
    with pytest.raises(InputError, match=r"^1.nii: there is no such file; it belongs to the case$"):
        load_case(
            case_of(write("0.nii", IMAGE), str(tmp_path / "1.nii"), modalities=("mr", "mr")), CLASSES, LIMIT
        )


def shifted(mm):
    affine = np.eye(4)
    affine[2, 3] = mm
    return affine


LABEL_FAULTS = {
    "shape": (LABEL[:, :3], None, "l.nii: shape (3, 3, 5) differs from (3, 4, 5) of i.nii"),
    "shift": (
        LABEL,
        shifted(0.2),
        "l.nii: lies up to 0.2 mm away from i.nii (affines differ); at most 0.1 mm",
    ),
    "flip": (LABEL, np.diag([-1, 1, 1, 1]), "l.nii: lies up to 4 mm away from i.nii (affines differ)"),
    "undeclared": (LABEL + np.uint8(5), None, "l.nii: the label holds 5, 6, 7; the dataset declares 0, 1, 2"),
    "negative": (LABEL.astype(np.int16) - 1, None, "l.nii: the label holds -1; the dataset declares 0, 1, 2"),
    "beyond uint8": (LABEL.astype(np.int16) * 256, None, "the label holds 256, 512; the dataset"),
    "fraction": (LABEL * np.float32(0.5), None, "the label holds 0.5; whole numbers are needed"),
    "NaN": (LABEL * np.float32(np.nan), None, "l.nii: the label has NaN or infinite voxels"),
    "4D": (np.stack([LABEL, LABEL], 3), None, "l.nii: the label has 2 channels; 1 is needed"),
}


@pytest.mark.parametrize("fault", LABEL_FAULTS)
def test_refuses_a_label(write, case_of, fault):
    array, affine, reason = LABEL_FAULTS[fault]
    case = case_of(write("i.nii", IMAGE), label=write("l.nii", array, affine))
    with pytest.raises(InputError, match=re.escape(reason)) as raised:
        load_case(case, CLASSES, LIMIT)
    assert "\n" not in str(raised.value)


def test_nothing_but_geometry_and_voxels_is_taken_from_a_file(write, case_of):
    secret = "JANE DOE 1970"
    path = write("i.nii", IMAGE, descrip=secret, aux_file=secret, db_name=secret, intent_name=secret)
    volume = load_case(case_of(path), CLASSES, LIMIT)
    assert "JANE" not in repr(volume)
    assert b"JANE" not in volume.image.tobytes()
