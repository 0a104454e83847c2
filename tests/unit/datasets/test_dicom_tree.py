"""DICOM trees of archives: a case for every series, ids that are safe and stable, no word of any tag."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hssl_dist import dicom, files
from hssl_dist.config.preprocess import DatasetConfig
from hssl_dist.datasets import discover
from hssl_dist.errors import ConfigError
from tests.dicom_files import CANARY, UID, changed, dicom_file, series, slice_elements, volume, write_files


@pytest.fixture
def tree(tmp_path) -> Path:
    """Two patients: one of two series in a folder, and one with much that is no scan."""
    root = tmp_path / "archive"
    write_files(root / "anna/2020/CT", series(volume(2)), ["1", "2"])
    write_files(root / "anna/2020/CT", series(volume(2), uid=f"{UID}.2"), ["3.dcm", "4.dcm"])
    write_files(root / "Björn K/x/CT", series(volume(2), uid=f"{UID}.3"))
    folder = root / "Björn K/x/other"
    report = [one for one in slice_elements(volume(1)[0], (0, 0, 0), uid=f"{UID}.4") if one[0] < 0x0028_0000]
    write_files(folder, [report], ["report"])
    mask = changed(slice_elements(volume(1)[0], (0, 0, 0), uid=f"{UID}.5"), {0x0008_0060: "SEG"})
    write_files(folder, [mask], ["mask"])
    (root / "DICOMDIR").write_bytes(dicom_file([], media="1.2.840.10008.1.3.10"))
    (root / "LICENSE").write_text("text")
    (folder / ".DS_Store").write_bytes(b"x")
    return root


def find(root: object, **keys: object):
    config = DatasetConfig.model_validate(
        {"name": "d", "layout": "dicom", "source": str(root), "group": "g", **keys}
    )
    return discover(config, "/")


def test_every_series_of_a_folder_is_a_case(tree):
    dataset = find(tree)
    assert dataset.modalities == ("ct",)
    assert [case.patient for case in dataset.cases] == ["Björn K", "anna", "anna"]
    assert all(re.fullmatch(r"(anna|Bjorn-K)_[0-9a-f]{12}", case.id) for case in dataset.cases)
    assert {len(dicom.series_files(case.images[0])) for case in dataset.cases} == {2}
    found = [path for case in dataset.cases for path, _ in dicom.series_files(case.images[0])]
    assert len(set(found)) == 6
    assert {case.label for case in dataset.cases} == {None}
    assert CANARY not in repr(dataset)
    assert UID not in repr(dataset)


def test_ids_stay_when_files_are_renamed_and_come_from_a_remote_tree_as_well(tree, tmp_path):
    before = [case.id for case in find(tree).cases]
    (tree / "anna/2020/CT/1").rename(tree / "anna/2020/CT/renamed")
    assert [case.id for case in find(tree).cases] == before
    remote = f"memory://{tmp_path.name}"
    for path in files.walk(str(tree)):
        files.write(files.join(remote, files.relative(path, str(tree))), Path(path).read_bytes())
    assert [case.id for case in find(remote).cases] == before


def test_the_patient_may_be_found_by_a_pattern_or_be_the_case_itself(tree, tmp_path):
    assert {case.patient for case in find(tree, patient_pattern="^(.)").cases} == {"a", "B"}
    write_files(tmp_path / "flat", series(volume(2)))
    (case,) = find(tmp_path / "flat").cases
    assert case.patient == case.id
    assert re.fullmatch(r"series_[0-9a-f]{12}", case.id)


def test_a_folder_of_damaged_files_is_a_case(tree):
    (tree / "carl").mkdir()
    (tree / "carl/1.dcm").write_bytes(b"")
    (case,) = (case for case in find(tree).cases if case.patient == "carl")
    assert case.images == (f"{tree}/carl/",)


def test_modalities_are_not_mixed_unless_it_is_said(tree):
    write_files(tree / "dora", series(volume(2), uid=f"{UID}.6", modality="MR"))
    with pytest.raises(ConfigError, match=r"mixes the modalities CT, MR; set `modality`, or make several"):
        find(tree)
    assert find(tree, modality="mr").modalities == ("mr",)


def test_plain_folders_hold_series_beside_files(tmp_path):
    write_files(tmp_path / "images/anna", series(volume(2)))
    (tmp_path / "images/.hidden").mkdir()
    for name in ("images/ben.nrrd", "labels/anna.nii.gz", "images/notes.txt"):
        files.write(str(tmp_path / name), b"")
    config = {"layout": "folder", "modality": "ct", "classes": {1: "one"}}
    dataset = find(tmp_path, **config)
    assert [(case.id, case.images[0], case.label) for case in dataset.cases] == [
        ("anna", f"{tmp_path}/images/anna/", f"{tmp_path}/labels/anna.nii.gz"),
        ("ben", f"{tmp_path}/images/ben.nrrd", None),
    ]
    assert dataset.unused == ("images/notes.txt",)
    files.write(str(tmp_path / "images/anna.nrrd"), b"")
    with pytest.raises(ConfigError, match=r"images/anna and .*anna.nrrd are the same case; remove one"):
        find(tmp_path, **config)
