"""The same volumes in every format, on Ray: the same stored voxels, and no word of their headers."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from hssl_dist import files
from hssl_dist.config.preprocess import DatasetConfig, PreprocessConfig
from hssl_dist.console import Console
from hssl_dist.jobs import preprocess
from hssl_dist.records import Manifest
from hssl_dist.store import read_manifest
from tests.dicom_files import CANARY, UID, changed, series, volume, write_files
from tests.itk_files import OBLIQUE, image_of, write_image

pytestmark = pytest.mark.usefixtures("ray_cluster")

CASES = ("anna", "ben", "cara")
TAGS = {"PatientName": f"{CANARY}-name", "Comment": f"{CANARY}-comment", "StudyDate": f"{CANARY}-date"}


def scan(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A CT-like volume and its label, axes reversed."""
    rng = np.random.default_rng(number)
    label = np.zeros((8 + number, 14, 12), np.uint8)
    label[2:6, 3:9, 4:8] = 1
    return (rng.normal(-50.0, 30.0, label.shape) + 150 * label).astype(np.int16), label


def write_folder(root: Path, ending: str, compressed: bool) -> None:
    """A challenge in plain folders, in one format."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    tags = {} if ending == ".nii.gz" else TAGS
    for number, name in enumerate(CASES):
        for folder, array in zip(("images", "labels"), scan(number), strict=True):
            image = image_of(array, direction=OBLIQUE)
            write_image(root / folder / f"{name}{ending}", image, compressed, tags)


def preprocessed(root: Path, store: Path, layout: str = "folder", **keys: object) -> tuple[dict, str]:
    """Run the job on the folder; its summary of the one dataset, and all it said."""
    stated = {"modality": "ct", "classes": {1: "box"}, **keys}
    dataset = DatasetConfig.model_validate(
        {"name": "toy", "layout": layout, "source": str(root), "group": "boxes", **stated}
    )
    config = PreprocessConfig.model_validate(
        {"store": {"url": str(store)}, "datasets": (dataset,), "max_failure_rate": 0.9}
    )
    stream = io.StringIO()
    outcome = preprocess.run(config, Console(stream))
    said = stream.getvalue() + json.dumps(outcome.summary) + "".join((*outcome.lines, *outcome.warnings))
    return outcome.summary["datasets"]["toy"], said


def write_tree(root: Path) -> None:
    """A DICOM archive of the scans, every text tag telling, every slice under a name of no meaning."""
    for number, name in enumerate(CASES):
        planes = (scan(number)[0] + 1024).astype(np.uint16)
        images = series(planes, 3.0, uid=f"{UID}.{number}", spacing_mm=(2.0, 1.5), rescale=("1", "-1024"))
        write_files(root / name / "2026-01-02" / "CT", images)


def nifti_of(series_folder: Path, path: Path) -> None:
    """What SimpleITK makes of a series, as NIfTI."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series_folder)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(reader.Execute(), str(path))


def voxel_hashes(manifest: Manifest) -> list[tuple[str, str]]:
    """Path and hash of every stored object of voxels."""
    objects = [item for record in manifest.cases for item in record.objects]
    voxels = [item for item in objects if not item.path.endswith("zarr.json")]
    assert len(voxels) >= len(CASES)
    return [(item.path, item.sha256) for item in voxels]


def assert_nowhere(word: str, folder: Path, said: str) -> None:
    """No file below the folder has the word in its bytes or its name, and nobody said it."""
    assert word not in said
    paths = [Path(url) for url in files.walk(str(folder))]
    assert paths
    for path in paths:
        assert word not in str(path)
        assert word.encode() not in path.read_bytes()


@pytest.mark.parametrize(
    ("ending", "compressed"), [(".nrrd", False), (".nrrd", True), (".mha", False), (".mha", True)]
)
def test_every_format_is_stored_like_nifti(tmp_path, ending, compressed):
    write_folder(tmp_path / "nifti", ".nii.gz", True)
    write_folder(tmp_path / "other", ending, compressed)
    assert CANARY.encode() in (tmp_path / f"other/images/anna{ending}").read_bytes()
    summary, _ = preprocessed(tmp_path / "nifti", tmp_path / "expected")
    assert summary["written"] == len(CASES)
    summary, said = preprocessed(tmp_path / "other", tmp_path / "store")
    assert (summary["written"], summary["quarantined"]) == (len(CASES), [])
    expected = read_manifest(str(tmp_path / "expected"), "toy")
    manifest = read_manifest(str(tmp_path / "store"), "toy")
    assert voxel_hashes(manifest) == voxel_hashes(expected)
    assert [record.intensities for record in manifest.cases] == [
        record.intensities for record in expected.cases
    ]
    assert manifest.cases[0].sources[0].path == f"images/anna{ending}"
    assert_nowhere(CANARY, tmp_path / "store", said)


def test_bad_files_of_every_format_are_quarantined_without_a_word_of_their_headers(tmp_path):
    write_folder(tmp_path / "challenge", ".nrrd", True)
    images = tmp_path / "challenge/images"
    for ending, compressed in ((".nrrd", True), (".mha", True), (".mha", False)):
        name = f"{CASES[0]}-{ending[1:]}-{compressed}"
        path = images / f"{name}{ending}"
        write_image(path, image_of(scan(0)[0]), compressed, TAGS)
        path.write_bytes(path.read_bytes()[:-50])
    write_image(images / "detached.mhd", image_of(scan(0)[0]), tags=TAGS)
    shutil.copy(images / "detached.mhd", images / "hostile.mha")
    summary, said = preprocessed(tmp_path / "challenge", tmp_path / "store")
    assert (summary["written"], len(summary["quarantined"])) == (len(CASES), 5)
    reasons = {item["id"]: item["reason"] for item in summary["quarantined"]}
    assert reasons["detached"] == "detached.mhd: a header without its voxels; convert it to .mha"
    assert reasons["hostile"] == "hostile.mha: a header without its voxels; convert it to .mha"
    assert sum("truncated" in reason for reason in reasons.values()) == 3
    assert_nowhere(CANARY, tmp_path / "store", said)


def test_a_dicom_tree_is_stored_like_the_nifti_files_of_its_series(tmp_path):
    write_tree(tmp_path / "archive")
    for name in CASES:
        nifti_of(tmp_path / "archive" / name / "2026-01-02/CT", tmp_path / f"nifti/images/{name}.nii.gz")
    summary, _ = preprocessed(tmp_path / "nifti", tmp_path / "expected")
    assert summary["written"] == len(CASES)
    summary, said = preprocessed(tmp_path / "archive", tmp_path / "store", "dicom", modality="auto")
    assert (summary["written"], summary["quarantined"]) == (len(CASES), [])
    expected = read_manifest(str(tmp_path / "expected"), "toy")
    manifest = read_manifest(str(tmp_path / "store"), "toy")
    assert [record.patient for record in manifest.cases] == list(CASES)
    plain = [(re.sub("_[0-9a-f]{12}", "", path), sha256) for path, sha256 in voxel_hashes(manifest)]
    assert plain == voxel_hashes(expected)
    for record, other in zip(manifest.cases, expected.cases, strict=True):
        assert record.intensities == other.intensities
        assert (record.geometry.shape, record.geometry.spacing_mm) == (
            other.geometry.shape,
            other.geometry.spacing_mm,
        )
        [source] = record.sources
        assert source.path.startswith(f"{record.patient}/2026-01-02/CT/#")
        files_of = (tmp_path / "archive" / record.patient).rglob("IM*")
        assert source.size_bytes == sum(path.stat().st_size for path in files_of)
    assert_nowhere(CANARY, tmp_path / "store", said)
    assert_nowhere(UID, tmp_path / "store", said)
    assert preprocessed(tmp_path / "archive", tmp_path / "store", "dicom", modality="auto")[0]["written"] == 0


def test_bad_series_are_quarantined_without_a_word_of_their_tags(tmp_path):
    write_tree(tmp_path / "archive")
    bad = tmp_path / "archive/zoe"
    images = series(volume(5), uid=f"{UID}.9")
    write_files(bad / "gap", [*images[:2], *images[3:]])
    write_files(bad / "localizer", images[:1])
    write_files(bad / "cut", images)
    cut = next((bad / "cut").iterdir())
    cut.write_bytes(cut.read_bytes()[:-3])
    write_files(bad / "frames", [[*images[0], (0x0028_0008, "IS", "20")]])
    jpeg = "1.2.840.10008.1.2.4.70"
    rubbish = [changed(one, {0x7FE0_0010: [CANARY.encode() * 9]}) for one in images]
    write_files(bad / "rubbish", rubbish, syntax=jpeg)
    summary, said = preprocessed(tmp_path / "archive", tmp_path / "store", "dicom")
    assert (summary["written"], len(summary["quarantined"])) == (len(CASES), 5)
    reasons = "; ".join(item["reason"] for item in summary["quarantined"])
    for reason in (
        "gap: slices are 2 to 4 mm apart: one is missing",
        "localizer: a series of one image",
        "truncated: holds 81 of 84 bytes of voxels",
        "an object of several frames",
        "ITK cannot decode it",
    ):
        assert reason in reasons
    assert_nowhere(CANARY, tmp_path / "store", said)
    assert_nowhere(UID, tmp_path / "store", said)
