"""What each layout has of its own."""

from __future__ import annotations

import re

import pytest

from hssl_dist import files
from hssl_dist.errors import ConfigError
from tests.unit.datasets.laid_out import LAYOUT_FILES, MSD, NNUNET, find, put, put_layout, told


def test_msd(root):
    put_layout(root, "msd")
    assert told(root, "msd") == [
        ("a", "a", "train", ["imagesTr/a.nii.gz"], "labelsTr/a.nii.gz"),
        ("b", "b", "train", ["imagesTr/b.nii.gz"], "labelsTr/b.nii.gz"),
        ("c", "c", "test", ["imagesTs/c.nii.gz"], None),
    ]
    dataset = find(root, "msd")
    assert dataset.classes == {1: "oedema", 2: "core"}
    assert dataset.modalities == ("mr", "mr")


def test_msd_without_test_images(disk):
    put(disk, [name for name in LAYOUT_FILES["msd"] if "Ts" not in name], MSD)
    assert [case.id for case in find(disk, "msd").cases] == ["a", "b"]


@pytest.mark.parametrize(
    "path", ["../a.nii.gz", "imagesTr/../../a.nii.gz", "/etc/a.nii.gz", "s3://b/a.nii.gz", "..\\a.nii.gz"]
)
def test_msd_stays_inside_its_folder(disk, path):
    for entry in ({"image": path}, {"image": "imagesTr/a.nii.gz", "label": path}):
        put(disk, [], {**MSD, "training": [entry]})
        with pytest.raises(ConfigError, match=re.escape(f"names {path!r}, which is outside of the dataset")):
            find(disk, "msd")


def test_msd_refuses_two_values_of_one_name(disk):
    put(disk, LAYOUT_FILES["msd"], {**MSD, "labels": {"0": "background", "1": "a", "2": "a"}})
    with pytest.raises(ConfigError, match=r"label values 1 and 2 are both called 'a'; give each a name of"):
        find(disk, "msd")


def test_nnunet(root):
    put_layout(root, "nnunet")
    assert told(root, "nnunet") == [
        ("a", "a", "train", ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"], "labelsTr/a.nii.gz"),
        ("b", "b", "train", ["imagesTr/b_0000.nii.gz", "imagesTr/b_0001.nii.gz"], "labelsTr/b.nii.gz"),
        ("c", "c", "test", ["imagesTs/c_0000.nii.gz", "imagesTs/c_0001.nii.gz"], None),
    ]
    dataset = find(root, "nnunet")
    assert dataset.classes == {1: "tumour"}
    assert dataset.modalities == ("ct", "mr")


def test_nnunet_leaves_missing_channels_and_images_to_the_reader(disk):
    put(disk, ["imagesTr/a_0001.nii.gz", "labelsTr/b.nii.gz"], NNUNET)
    assert told(disk, "nnunet") == [
        ("a", "a", "train", ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"], None),
        ("b", "b", "train", ["imagesTr/b_0000.nii.gz", "imagesTr/b_0001.nii.gz"], "labelsTr/b.nii.gz"),
    ]


NNUNET_FAULTS = {
    "regions": (
        {"labels": {"background": 0, "whole": [1, 2]}},
        "label 'whole' is a region of the values [1, 2]; regions are not supported: name each value",
    ),
    "ignore": ({"labels": {"background": 0, "a": 1, "ignore": 2}}, "value 2 is an ignore label"),
    "twice": ({"labels": {"background": 0, "a": 1, "b": 1}}, "'a' and 'b' are both value 1"),
    "upside down": ({"labels": {"0": "background", "1": "a"}}, "dataset.json: labels.0.int: Input should be"),
    "PNG": ({"file_ending": ".png"}, "file_ending is '.png'; .nii.gz, .nii, .nrrd, .mha can be read"),
    "channels": (
        {"channel_names": {"0": "CT"}},
        "_0001.nii.gz is channel 1; dataset.json declares 1 channels",
    ),
    "large value": ({"labels": {"background": 0, "a": 256}}, "label value 256; 1 to 255 can be stored"),
    "no labels": (
        {"labels": {"background": 0}},
        "has labels, but nothing names their values; give `classes`",
    ),
}


@pytest.mark.parametrize("fault", NNUNET_FAULTS)
def test_nnunet_refuses(disk, fault):
    change, reason = NNUNET_FAULTS[fault]
    put(disk, LAYOUT_FILES["nnunet"], {**NNUNET, **change})
    with pytest.raises(ConfigError, match=re.escape(reason)) as raised:
        find(disk, "nnunet")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("fault", ["regions", "ignore", "large value", "no labels"])
def test_classes_of_the_config_win(disk, fault):
    put(disk, LAYOUT_FILES["nnunet"], {**NNUNET, **NNUNET_FAULTS[fault][0]})
    assert find(disk, "nnunet", classes={2: "b", 1: "a"}).classes == {1: "a", 2: "b"}


def test_nnunet_wants_channel_numbers(disk):
    put(disk, ["imagesTr/a.nii.gz"], NNUNET)
    with pytest.raises(ConfigError, match=r"a.nii.gz does not end in its channel's number, as _0000.nii.gz"):
        find(disk, "nnunet")


def test_bids(root):
    put_layout(root, "bids")
    mask = "derivatives/lesions/sub-1/anat/sub-1_desc-lesion_mask.nii.gz"
    late = "derivatives/lesions/sub-2/ses-2/anat/sub-2_ses-2_desc-lesion_mask.nii.gz"
    assert told(root, "bids") == [
        ("sub-1_FLAIR", "sub-1", "train", ["sub-1/anat/sub-1_FLAIR.nii.gz"], mask),
        ("sub-1_T1w", "sub-1", "train", ["sub-1/anat/sub-1_T1w.nii.gz"], mask),
        ("sub-2_ses-1_FLAIR", "sub-2", "train", ["sub-2/ses-1/anat/sub-2_ses-1_FLAIR.nii.gz"], None),
        ("sub-2_ses-2_FLAIR", "sub-2", "train", ["sub-2/ses-2/anat/sub-2_ses-2_FLAIR.nii.gz"], late),
    ]
    assert find(root, "bids").modalities == ("mr",)


def test_a_bids_mask_of_a_contrast_belongs_to_that_contrast(disk):
    folder = "derivatives/lesions/sub-1/anat/"
    named, general = (
        folder + "sub-1_space-T1w_desc-lesion_mask.nii.gz",
        folder + "sub-1_desc-lesion_mask.nii.gz",
    )
    put(disk, [*LAYOUT_FILES["bids"], named])
    assert [case[4] for case in told(disk, "bids")[:2]] == [general, named]
    files.remove(files.join(disk, "set", general))
    assert [case[4] for case in told(disk, "bids")[:2]] == [None, named]
    put(disk, [folder + "sub-1_T1w_mask.nii.gz"])
    with pytest.raises(ConfigError, match="sub-1_T1w has 2 masks"):
        find(disk, "bids")


def test_bids_with_several_folders_of_masks_needs_a_choice(disk):
    put(disk, [*LAYOUT_FILES["bids"], "derivatives/manual/sub-1/anat/sub-1_desc-x_mask.nii.gz"])
    with pytest.raises(ConfigError, match="masks in derivatives/ of lesions, manual; choose one"):
        find(disk, "bids")
    labels = [case[4] for case in told(disk, "bids", derivatives="manual")]
    assert labels == ["derivatives/manual/sub-1/anat/sub-1_desc-x_mask.nii.gz"] * 2 + [None] * 2
    with pytest.raises(ConfigError, match=r"no masks in .*derivatives/other"):
        find(disk, "bids", derivatives="other")


def test_bids_masks_need_names_of_their_values(disk):
    put_layout(disk, "bids")
    with pytest.raises(
        ConfigError, match=r"nothing names their values; give `classes`, for example \{1: lesion\}"
    ):
        find(disk, "bids", classes={})


def test_bids_does_not_mix_ct_and_mr(disk):
    put(disk, ["sub-1/anat/sub-1_CT.nii.gz"])
    assert find(disk, "bids").modalities == ("ct",)
    put_layout(disk, "bids")
    with pytest.raises(ConfigError, match=r"mixes CT and MR \(CT, FLAIR, T1w\); set `modality`"):
        find(disk, "bids")


def test_folder(root):
    put_layout(root, "folder")
    assert told(root, "folder") == [
        ("a", "a", "train", ["images/a.nii.gz"], None),
        ("b", "b", "train", ["images/b.nii.gz"], "labels/b.nii.gz"),
    ]
    assert find(root, "folder").modalities == ("ct",)


def test_folder_takes_every_format(disk):
    put(disk, ["images/a.nrrd", "images/b.mha", "images/c.nii", "labels/a.nii.gz", "labels/b.nrrd"])
    put(disk, ["images/d.nhdr", "images/d.raw", "images/e.mhd", "images/e.zraw", "labels/f.mha"])
    assert [case[3:] for case in told(disk, "folder")] == [
        (["images/a.nrrd"], "labels/a.nii.gz"),
        (["images/b.mha"], "labels/b.nrrd"),
        (["images/c.nii"], None),
        (["images/d.nhdr"], None),
        (["images/e.mhd"], None),
        (["images/f.nii.gz"], "labels/f.mha"),
    ]
    put(disk, ["images/a.mha"])
    with pytest.raises(ConfigError, match=r"a.nrrd and .*a.mha are the same case; remove one"):
        find(disk, "folder")


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_nnunet_in_other_formats(disk, ending):
    names = [name.replace(".nii.gz", ending) for name in LAYOUT_FILES["nnunet"]]
    put(disk, names, {**NNUNET, "file_ending": ending})
    assert told(disk, "nnunet")[0] == (
        "a",
        "a",
        "train",
        [f"imagesTr/a_0000{ending}", f"imagesTr/a_0001{ending}"],
        f"labelsTr/a{ending}",
    )
    assert len(find(disk, "nnunet").cases) == 3


def test_folder_with_other_folder_names(disk):
    put(disk, ["scans/a.nii", "masks/a.nii.gz", "masks/b.nii.gz"])
    assert told(disk, "folder", images="scans", labels="masks") == [
        ("a", "a", "train", ["scans/a.nii"], "masks/a.nii.gz"),
        ("b", "b", "train", ["scans/b.nii.gz"], "masks/b.nii.gz"),
    ]


def test_folder_does_not_guess_the_modality(disk):
    put_layout(disk, "folder")
    with pytest.raises(ConfigError, match="does not tell the modality; set it to `ct` or `mr`"):
        find(disk, "folder", modality="auto")
