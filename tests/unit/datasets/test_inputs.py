"""What counts as a case to predict, in every shape that inputs come in."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from hssl_dist.datasets.inputs import find_inputs, known_modality
from hssl_dist.errors import ConfigError, MissingError
from tests.dicom_files import series, volume, write_files


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def describe(folder: Path, **content: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content))


def found(source: Path, layout="auto") -> dict[str, list[str]]:
    """Names of the files of each case, by the case's name."""
    inputs = find_inputs(str(source), layout)
    return {case.name: [Path(url).name for url in case.images] for case in inputs.cases}


def test_a_plain_folder_of_every_format(tmp_path):
    folder = touch(tmp_path / "in", "b.nii.gz", "a b.nii", "ü.nrrd", "d.mha", "._b.nii.gz", "notes.txt")
    touch(folder / "nested", "e.nii.gz")
    assert found(folder) == {"a b": ["a b.nii"], "b": ["b.nii.gz"], "d": ["d.mha"], "ü": ["ü.nrrd"]}
    inputs = find_inputs(str(folder), "auto")
    assert inputs.folder == str(folder)
    assert inputs.channels == ()
    assert inputs.unused == ("nested", "notes.txt")


def test_a_decathlon_by_its_root_or_its_images(tmp_path):
    describe(tmp_path, modality={"0": "FLAIR", "1": "T1w"}, labels={"0": "background"}, training=[])
    touch(tmp_path / "imagesTs", "BRATS_001.nii.gz", "._BRATS_001.nii.gz", "BRATS_002.nii.gz")
    touch(tmp_path / "imagesTr", "BRATS_003.nii.gz")
    expected = {"BRATS_001": ["BRATS_001.nii.gz"], "BRATS_002": ["BRATS_002.nii.gz"]}
    assert found(tmp_path) == found(tmp_path / "imagesTs") == expected
    for place in (tmp_path, tmp_path / "imagesTs", tmp_path / "imagesTs/BRATS_002.nii.gz"):
        assert find_inputs(str(place), "auto").channels == ("FLAIR", "T1w")
    assert found(tmp_path / "imagesTr") == {"BRATS_003": ["BRATS_003.nii.gz"]}


def test_a_decathlon_in_a_tar(tmp_path):
    describe(tmp_path / "Task", modality={"0": "CT"})
    touch(tmp_path / "Task/imagesTs", "x_1.nii.gz")
    with tarfile.open(tmp_path / "Task.tar", "w") as archive:
        archive.add(tmp_path / "Task", "Task")
    inputs = find_inputs(str(tmp_path / "Task.tar"), "auto")
    assert inputs.folder == f"{tmp_path}/Task.tar!/Task/imagesTs"
    assert inputs.channels == ("CT",)
    assert [case.images for case in inputs.cases] == [(f"{inputs.folder}/x_1.nii.gz",)]


def test_nnunet_channels_are_one_case(tmp_path):
    names = [f"{case}_{channel:04d}.nii.gz" for case in ("p_1", "p_2") for channel in (0, 1)]
    expected = {"p_1": names[:2], "p_2": names[2:]}
    touch(tmp_path / "bare", *names)
    assert found(tmp_path / "bare") == expected
    touch(tmp_path / "set/imagesTs", *names)
    describe(tmp_path / "set", channel_names={"0": "T2", "1": "ADC"}, labels={}, file_ending=".nii.gz")
    assert found(tmp_path / "set") == found(tmp_path / "set/imagesTs") == expected
    assert find_inputs(str(tmp_path / "set"), "auto").channels == ("T2", "ADC")
    assert found(tmp_path / "set/imagesTs/p_2_0001.nii.gz") == {"p_2": names[2:]}


def test_a_missing_channel_is_named_and_one_too_many_kept(tmp_path):
    touch(tmp_path / "imagesTs", "a_0000.nrrd", "b_0001.nrrd", "c_0000.nrrd", "c_0001.nrrd", "c_0002.nrrd")
    describe(tmp_path, channel_names={"0": "T1", "1": "T2"}, file_ending=".nrrd")
    assert found(tmp_path) == {
        "a": ["a_0000.nrrd", "a_0001.nrrd"],
        "b": ["b_0000.nrrd", "b_0001.nrrd"],
        "c": ["c_0000.nrrd", "c_0001.nrrd", "c_0002.nrrd"],
    }


def test_the_file_ending_of_the_description_decides(tmp_path):
    folder = touch(tmp_path / "imagesTs", "a_0000.mha", "b_0000.nii.gz")
    describe(tmp_path, channel_names={"0": "CT"}, file_ending=".mha")
    assert found(folder) == {"a": ["a_0000.mha"]}
    assert find_inputs(str(folder), "auto").unused == ("b_0000.nii.gz",)
    describe(tmp_path, channel_names={"0": "CT"}, file_ending=".png")
    with pytest.raises(ConfigError, match=r"file_ending is '\.png'; \.nii\.gz, \.nii, \.nrrd, \.mha can be"):
        find_inputs(str(folder), "auto")


def test_numbered_files_are_cases_unless_each_has_a_channel_zero(tmp_path):
    numbered = touch(tmp_path / "numbered", "scan_0001.nii.gz", "scan_0002.nii.gz")
    assert set(found(numbered)) == {"scan_0001", "scan_0002"}
    assert set(found(numbered / "scan_0002.nii.gz")) == {"scan_0002"}
    from_zero = touch(tmp_path / "zero", "scan_0000.nii.gz", "scan_0001.nii.gz")
    assert found(from_zero) == {"scan": ["scan_0000.nii.gz", "scan_0001.nii.gz"]}
    assert set(found(from_zero, "folder")) == {"scan_0000", "scan_0001"}
    assert set(found(from_zero / "scan_0001.nii.gz", "folder")) == {"scan_0001"}
    mixed = touch(tmp_path / "mixed", "scan_0000.nii.gz", "other.nii.gz")
    assert set(found(mixed)) == {"scan_0000", "other"}
    with pytest.raises(ConfigError) as caught:
        found(mixed, "nnunet")
    assert str(caught.value) == (
        f"{mixed}/other.nii.gz does not end in its channel's number, as other_0000 does; rename it, or set "
        "`layout` to folder"
    )


def test_dicom_series_by_folders_or_as_the_folder(tmp_path):
    write_files(tmp_path / "in/anna", series(volume()))
    write_files(tmp_path / "in/ben", series(volume()))
    touch(tmp_path / "in/predictions", "anna.nii.gz")
    inputs = find_inputs(str(tmp_path / "in"), "auto")
    assert [(case.name, case.images) for case in inputs.cases] == [
        (name, (f"{tmp_path}/in/{name}/",)) for name in ("anna", "ben")
    ]
    assert inputs.unused == ("predictions",)
    (one,) = find_inputs(str(tmp_path / "in/anna"), "auto").cases
    assert (one.name, one.images) == ("anna", (f"{tmp_path}/in/anna/",))


def test_what_is_not_there_or_makes_no_sense(tmp_path):
    empty = touch(tmp_path / "empty", "readme.md")
    twice = touch(tmp_path / "twice", "a.nii", "a.nii.gz")
    table = [
        (empty, MissingError, f"there is no image in {empty}; known are .nii.gz, .nii, .nrrd, .mha and "
         "folders of DICOM series"),
        (tmp_path / "no", MissingError, f"there is no {tmp_path}/no; give a file or a folder of images as "
         "`input`"),
        (tmp_path / "no.tar", MissingError, f"there is no archive {tmp_path}/no.tar; give another `input`"),
        (twice, ConfigError, f"{twice}/a.nii.gz and {twice}/a.nii are the same case; remove one"),
        (empty / "readme.md", ConfigError, f"{empty}/readme.md is no image of a known format (.nii.gz, .nii, "
         ".nrrd, .mha); of DICOM give the series' folder"),
    ]  # fmt: skip
    for source, kind, message in table:
        with pytest.raises(kind) as caught:
            find_inputs(str(source), "auto")
        assert str(caught.value) == message


def test_a_damaged_description_is_told(tmp_path):
    touch(tmp_path / "imagesTs", "a.nii.gz")
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(ConfigError, match=r"dataset\.json: Invalid JSON"):
        find_inputs(str(tmp_path), "auto")


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("CT", "ct"), ("cta", "ct"), ("Computed Tomography", "ct"), ("MRI", "mr"), ("cineMRI", "mr"),
        ("T1w", "mr"), ("t1gd", "mr"), ("T2", "mr"), ("FLAIR", "mr"), ("ADC", "mr"), ("MR", "mr"),
        ("0", None), ("noNorm", None), ("rescale_to_0_1", None), ("PET", None), ("octet", None),
    ],
)  # fmt: skip
def test_what_a_channel_s_name_tells(name, modality):
    assert known_modality(name) == modality
