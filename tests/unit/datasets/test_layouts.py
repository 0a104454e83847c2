"""The contract every layout keeps; on disk and in a remote store."""

from __future__ import annotations

import re

import pytest

from hssl_dist import files
from hssl_dist.config.preprocess import DatasetConfig
from hssl_dist.datasets import LAYOUTS, discover
from hssl_dist.errors import ConfigError, MissingError
from tests.unit.datasets.laid_out import EXTRAS, LAYOUT_FILES, MSD, NNUNET, find, put, put_layout


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
