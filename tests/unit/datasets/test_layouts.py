"""The contract every layout keeps, and what each of them has of its own; on disk and in a remote store."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

import pytest

from hssl_dist import files
from hssl_dist.config.preprocess import DatasetConfig
from hssl_dist.datasets import LAYOUTS, discover
from hssl_dist.errors import ConfigError, MissingError
from tests.dicom_files import dicom_file, series, volume

MSD = {
    "modality": {"0": "FLAIR", "1": "T1w"},
    "labels": {"0": "background", "2": "core", "1": "oedema"},
    "training": [
        {"image": "./imagesTr/b.nii.gz", "label": "./labelsTr/b.nii.gz"},
        {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"},
        {"image": "./imagesTr/._a.nii.gz", "label": "./labelsTr/._a.nii.gz"},
    ],
    "test": ["./imagesTs/c.nii.gz"],
}
NNUNET = {
    "channel_names": {"0": "CT", "1": "PET"},
    "labels": {"background": 0, "tumour": 1},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}
LAYOUT_FILES = {
    "msd": [
        "imagesTr/a.nii.gz",
        "imagesTr/b.nii.gz",
        "imagesTr/._a.nii.gz",
        "labelsTr/a.nii.gz",
        "labelsTr/b.nii.gz",
        "imagesTs/c.nii.gz",
    ],
    "nnunet": [
        *(f"imagesTr/{case}_000{channel}.nii.gz" for case in "ba" for channel in (0, 1)),
        *(f"imagesTs/c_000{channel}.nii.gz" for channel in (0, 1)),
        "imagesTr/._a_0000.nii.gz",
        "labelsTr/a.nii.gz",
        "labelsTr/b.nii.gz",
    ],
    "bids": [
        "participants.tsv",
        "sub-1/anat/sub-1_FLAIR.nii.gz",
        "sub-1/anat/sub-1_FLAIR.json",
        "sub-1/anat/._sub-1_FLAIR.nii.gz",
        "sub-1/anat/sub-1_T1w.nii.gz",
        "sub-1/anat/sub-1_defacemask.nii.gz",
        "sub-1/dwi/sub-1_dwi.nii.gz",
        "sub-2/ses-1/anat/sub-2_ses-1_FLAIR.nii.gz",
        "sub-2/ses-2/anat/sub-2_ses-2_FLAIR.nii.gz",
        "derivatives/lesions/sub-1/anat/sub-1_desc-lesion_mask.nii.gz",
        "derivatives/lesions/sub-2/ses-2/anat/sub-2_ses-2_desc-lesion_mask.nii.gz",
    ],
    "folder": [
        "images/a.nii.gz",
        "images/b.nii.gz",
        "images/notes.txt",
        "images/._a.nii.gz",
        "labels/b.nii.gz",
    ],
    "dicom": ["anna/ct/1", "anna/ct/2", "ben/ct/1"],
}
EXTRAS = {
    "folder": {"modality": "ct", "classes": {1: "nodule"}},
    "bids": {"classes": {1: "lesion"}},
}


@pytest.fixture(params=["disk", "memory"])
def root(request, tmp_path) -> str:
    return str(tmp_path) if request.param == "disk" else f"memory://{tmp_path.name}"


@pytest.fixture
def disk(tmp_path) -> str:
    return str(tmp_path)


def put(root: str, names: Iterable[str], description: object = None) -> None:
    """Files of no content: discovery never opens an image."""
    for name in names:
        files.write(files.join(root, "set", name), b"")
    if description is not None:
        files.write(files.join(root, "set", "dataset.json"), json.dumps(description).encode())


def put_layout(root: str, layout: str) -> None:
    put(root, LAYOUT_FILES[layout], {"msd": MSD, "nnunet": NNUNET}.get(layout))
    if layout == "dicom":  # which files are one series stands in the files
        for name in LAYOUT_FILES[layout]:
            (elements,) = series(volume(1), uid=f"1.2.{ord(name[0])}")
            files.write(files.join(root, "set", name), dicom_file(elements))


def find(root: str, layout: str, **keys):
    config = DatasetConfig(
        **{"name": "d", "layout": layout, "source": "set", "group": "g", **EXTRAS.get(layout, {}), **keys}
    )
    return discover(config, root)


def told(root: str, layout: str, **keys):
    """`(id, patient, split, images, label)` of every case, paths relative to the dataset."""

    def short(url):
        return None if url is None else files.relative(url, files.join(root, "set"))

    return [
        (case.id, case.patient, case.split, [short(url) for url in case.images], short(case.label))
        for case in find(root, layout, **keys).cases
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_keeps_the_contract(root, layout):
    put_layout(root, layout)
    dataset = find(root, layout)
    ids = [case.id for case in dataset.cases]
    assert dataset.name == "d"
    assert ids == sorted(set(ids))
    assert len(ids) == {"msd": 3, "nnunet": 3, "bids": 4, "folder": 2, "dicom": 2}[layout]
    assert all(0 < value <= 255 for value in dataset.classes)
    for case in dataset.cases:
        assert case.dataset == "d"
        assert case.modalities == dataset.modalities
        assert set(case.modalities) <= {"ct", "mr"}
        assert all(files.exists(url.partition("#")[0]) for url in case.images)
        assert case.label is None or files.exists(case.label)
    assert find(root, layout) == dataset


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_takes_patients_and_modality_from_the_config(root, layout):
    put_layout(root, layout)
    dataset = find(root, layout, patient_pattern="(.)", modality="ct")
    assert [case.patient for case in dataset.cases] == [case.id[0] for case in dataset.cases]
    assert set(dataset.modalities) == {"ct"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_takes_an_absolute_source(root, layout):
    put_layout(root, layout)
    there = discover_source(files.join(root, "set"), layout)
    assert there == find(root, layout)


def discover_source(source: str, layout: str):
    config = DatasetConfig(name="d", layout=layout, source=source, group="g", **EXTRAS.get(layout, {}))
    return discover(config, "/nowhere")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_says_what_is_missing(root, layout):
    with pytest.raises(MissingError, match=r"^dataset 'd': there is no folder .*set; set `source`$"):
        find(root, layout)
    put(root, ["readme.txt"], {"msd": {**MSD, "training": [], "test": []}, "nnunet": NNUNET}.get(layout))
    with pytest.raises(MissingError, match=r"no case in|there is no folder"):
        find(root, layout)


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


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe", b"[]", b'{"labels": 3}', b""])
@pytest.mark.parametrize("layout", ["msd", "nnunet"])
def test_an_unreadable_description_is_one_line(disk, layout, text):
    put_layout(disk, layout)
    files.write(files.join(disk, "set", "dataset.json"), text)
    with pytest.raises(ConfigError, match=r"dataset\.json: .") as raised:
        find(disk, layout)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("layout", ["msd", "nnunet"])
def test_a_missing_description_is_named(disk, layout):
    put(disk, LAYOUT_FILES[layout])
    with pytest.raises(MissingError, match=r"there is no .*dataset\.json; the layout needs it"):
        find(disk, layout)


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


def test_one_case_twice_is_refused(disk):
    put(disk, ["images/a.nii", "images/a.nii.gz"])
    with pytest.raises(ConfigError, match=r"a.nii.gz and .*a.nii are the same case; remove one"):
        find(disk, "folder")
    put(disk, LAYOUT_FILES["msd"], {**MSD, "training": [MSD["training"][0]] * 2})
    with pytest.raises(ConfigError, match=r"b.nii.gz and .*b.nii.gz are both case 'b'; rename one"):
        find(disk, "msd")


def test_names_become_safe_ids(disk):
    put(disk, [f"images/{name}.nii.gz" for name in ("My Case (2)", "Müller 1", "患者1", "plain_1.v2")])
    ids = [case.id for case in find(disk, "folder").cases]
    assert ids == ["1-3a3bf138", "Muller-1", "My-Case-2", "plain_1.v2"]
    put(disk, ["images/My-Case-2.nii.gz"])
    with pytest.raises(ConfigError, match="are both case 'My-Case-2'; rename one"):
        find(disk, "folder")


def test_a_name_too_long_for_a_files_becomes_a_shorter_id(disk):
    put(disk, [f"images/{'x' * 200}{end}.nii.gz" for end in "12"])
    ids = [case.id for case in find(disk, "folder").cases]
    assert {case[:120] for case in ids} == {"x" * 120}
    assert len(set(ids)) == 2
    assert max(map(len, ids)) == 129


@pytest.mark.parametrize("layout", sorted(set(LAYOUTS) - {"dicom"}))
def test_what_lies_among_the_images_and_is_no_case_is_told(root, layout):
    put_layout(root, layout)
    told_at_first = {"folder": ("images/notes.txt",)}.get(layout, ())
    assert find(root, layout).unused == told_at_first
    stray = {
        "msd": "labelsTr/new.nii.gz",
        "nnunet": "imagesTs/readme.md",
        "bids": "derivatives/lesions/sub-3/anat/sub-3_desc-lesion_mask.nii.gz",
        "folder": "labels/b.png",
    }[layout]
    put(root, [stray])
    assert find(root, layout).unused == (*told_at_first, stray)


def test_a_description_without_channels_is_refused(disk):
    put(disk, LAYOUT_FILES["msd"], {**MSD, "modality": {}})
    with pytest.raises(ConfigError, match="dataset 'd': its description names no channel; name each"):
        find(disk, "msd")


def test_a_pattern_that_finds_no_patient_names_the_case(disk):
    put_layout(disk, "folder")
    with pytest.raises(ConfigError, match=re.escape("patient_pattern '^(a)' finds no patient in case 'b'")):
        find(disk, "folder", patient_pattern="^(a)")


CHANNELS: dict[str, str] = {
    "CT": "ct",
    "ct": "ct",
    "CTA": "ct",
    "Computed Tomography": "ct",
    "MRI": "mr",
    "cineMRI": "mr",
    "T1": "mr",
    "FLAIR": "mr",
    "contrast": "mr",
    "PET": "mr",
}


@pytest.mark.parametrize("channel", CHANNELS)
def test_channels_are_ct_or_treated_as_mr(disk, channel):
    put(disk, ["imagesTr/a_0000.nii.gz"], {**NNUNET, "channel_names": {"0": channel}})
    assert find(disk, "nnunet").modalities == (CHANNELS[channel],)
