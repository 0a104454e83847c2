"""Headers, tags and sidecars tell who a patient is; nothing that is written from them does.

Every field of every format that nobody needs holds a word, and so do the files beside the images. All jobs
then run over them, with some files damaged, and the word is searched in whatever they wrote or said.
"""

from __future__ import annotations

import gzip
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from hssl_dist.config.evaluate import EvaluateConfig
from hssl_dist.config.export import ExportConfig
from hssl_dist.config.finetune import FinetuneConfig
from hssl_dist.config.parts import StoreConfig, TrackingConfig
from hssl_dist.config.predict import PredictConfig
from hssl_dist.config.preprocess import DatasetConfig, PreprocessConfig
from hssl_dist.console import Console
from hssl_dist.jobs import evaluate, export, finetune, predict, preprocess, pretrain
from hssl_dist.records import Outcome
from tests import tiny_pretraining
from tests.dicom_files import CANARY, UID, series, volume, write_files
from tests.itk_files import image_of, write_image
from tests.security.searching import places
from tests.tiny_network import NETWORK

SHAPE = (20, 18, 12)
AFFINE = np.diag([1.5, 1.5, 3.0, 1.0])
PATIENTS = 6
TRAINING = {"steps": 2, "patch_size": (4, 8, 8), "validate_every": 2, "log_every_steps": 1}
FREE_TEXT = ("name", "description", "reference", "licence", "release", "tensorImageSize", "converted_by")
OUTPUTS = (
    *(
        "store/msd/manifest.jsonl",
        "store/**/*.html",
        "store/msd/quarantine/*.jsonl",
        "store/*/*.zarr/0/c/**/*",
    ),
    *("runs/*/**/*.safetensors", "mlflow.db", "mlartifacts/**/*.json", "mlartifacts/**/*.png"),
    *("evaluation/**/*.html", "predictions/nifti/*.nii.gz", "predictions/itk/*.nii.gz"),
    *("predictions/dicom/*.nii.gz", "exports/nnunet/*", "exports/monai/**/*.json", "exports/safetensors/*"),
)
JOBS = ("preprocess", "pretrain", "finetune", "evaluate", "predict", "nnunet", "monai", "safetensors")


def telling_nifti(path: Path, voxels: np.ndarray) -> None:
    """A NIfTI file whose every free field, two extensions and gzip header hold the word."""
    image = nibabel.Nifti1Image(voxels, AFFINE)
    for field, length in (("descrip", 80), ("aux_file", 24), ("intent_name", 16), ("db_name", 18)):
        image.header[field] = f"{CANARY}-{field}"[:length].encode()
    image.header["data_type"] = CANARY.encode()
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", f"{CANARY} comment".encode()))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("afni", f"<x n='{CANARY}'/>".encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream, gzip.GzipFile(f"{CANARY}.nii", "wb", fileobj=stream) as packed:
        packed.write(image.to_bytes())
    raw = path.read_bytes()
    assert CANARY.encode() in raw  # of the gzip header
    assert gzip.decompress(raw).count(CANARY.encode()) == 7


def scan(number: int) -> tuple[np.ndarray, np.ndarray]:
    label = np.zeros(SHAPE, np.uint8)
    label[3:12, 3:11, 2:9] = 1
    rng = np.random.default_rng(number)
    return (rng.normal(200.0, 20.0, SHAPE) + 150.0 * label).astype(np.int16), label


def cut(path: Path) -> None:
    """Damage: what refuses the file has read its header."""
    path.write_bytes(path.read_bytes()[:-40])


def write_msd(root: Path) -> DatasetConfig:
    names = [f"scan_{number}" for number in range(PATIENTS)]
    for number, name in enumerate(names):
        for folder, voxels in zip(("imagesTr", "labelsTr"), scan(number), strict=True):
            telling_nifti(root / folder / f"{name}.nii.gz", voxels)
    cut(root / "imagesTr/scan_5.nii.gz")
    listed = [{"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in names]
    described = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "box"}, "training": listed}
    (root / "dataset.json").write_text(json.dumps({key: f"{CANARY} {key}" for key in FREE_TEXT} | described))
    return DatasetConfig(name="msd", layout="msd", source="msd", group="boxes")


def write_nnunet(root: Path) -> DatasetConfig:
    for number in range(3):
        image, label = scan(number)
        telling_nifti(root / f"imagesTr/n{number}_0000.nii.gz", image)
        telling_nifti(root / f"labelsTr/n{number}.nii.gz", label)
    described = {
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, "box": 1},
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps({key: f"{CANARY} {key}" for key in FREE_TEXT} | described))
    return DatasetConfig(name="nnunet", layout="nnunet", source="nnunet", group="boxes")


def write_bids(root: Path) -> DatasetConfig:
    tags = ("PatientName", "PatientBirthDate", "AcquisitionDateTime", "InstitutionName", "DeviceSerialNumber")
    for number in range(3):
        image, label = scan(number)
        anatomy = root / f"sub-{number}/anat"
        telling_nifti(anatomy / f"sub-{number}_T1w.nii.gz", image)
        sidecar = anatomy / f"sub-{number}_T1w.json"
        sidecar.write_text(json.dumps({tag: f"{CANARY} {tag}" for tag in tags} | {"RepetitionTime": 2.0}))
        telling_nifti(root / f"derivatives/masks/sub-{number}/anat/sub-{number}_mask.nii.gz", label)
    (root / "participants.tsv").write_text(f"participant_id\tname\nsub-0\t{CANARY}\n")
    (root / "dataset_description.json").write_text(json.dumps({"Name": CANARY, "Authors": [CANARY]}))
    (root / "README").write_text(CANARY)
    return DatasetConfig(name="bids", layout="bids", source="bids", group="boxes", classes={1: "box"})


def write_folder(root: Path) -> DatasetConfig:
    """The formats of ITK, whose headers hold any line."""
    tags = {"PatientName": f"{CANARY}-name", "Comment": f"{CANARY}-comment"}
    for number, ending in enumerate((".nrrd", ".mha", ".nrrd")):
        for folder, array in zip(("images", "labels"), scan(number), strict=True):
            (root / folder).mkdir(parents=True, exist_ok=True)
            path = root / folder / f"f{number}{ending}"
            write_image(path, image_of(array), compressed=bool(number), tags=tags)
            assert CANARY.encode() in path.read_bytes()
    return DatasetConfig(
        name="itk", layout="folder", source="itk", group="boxes", modality="mr", classes={1: "box"}
    )


def write_dicom(root: Path) -> DatasetConfig:
    for number in range(3):
        images = series(volume(6, 12, 12, seed=number), uid=f"{UID}.{number}", modality="MR")
        write_files(root / f"d{number}" / "study" / "series", images)
    broken = next((root / "d2/study/series").iterdir())
    broken.write_bytes(broken.read_bytes()[:-3])
    return DatasetConfig(name="dicom", layout="dicom", source="dicom", group="scans")


@dataclass(frozen=True)
class Written:
    """Folders that the jobs wrote, and what each job said: its console, its result and its warnings."""

    folder: Path
    said: dict[str, str]


def run(said: dict[str, str], name: str, job: Any, config: Any) -> Outcome:
    stream = io.StringIO()
    outcome: Outcome = job.run(config, Console(stream))
    summary = json.dumps(outcome.summary, default=str)
    said[name] = "\n".join((stream.getvalue(), summary, *outcome.lines, *outcome.warnings))
    return outcome


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Written:
    """All jobs over all formats; whatever they write is below one folder."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("written")
    datasets = (
        write_msd(source / "msd"),
        write_nnunet(source / "nnunet"),
        write_bids(source / "bids"),
        write_folder(source / "itk"),
        write_dicom(source / "dicom"),
    )
    said: dict[str, str] = {}
    tracking = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db")
    store, runs = StoreConfig(url=str(folder / "store")), str(folder / "runs")
    stored = run(
        said,
        "preprocess",
        preprocess,
        PreprocessConfig(store=store, source_root=str(source), datasets=datasets, max_failure_rate=0.5),
    )
    assert stored.summary["totals"]["quarantined"] == 2
    common = {"store": store, "runs": runs, "tracking": tracking}
    shared = {"runner": "inline", "register_as": "tiny"}
    run(said, "pretrain", pretrain, tiny_pretraining.config(**common | shared))
    tuned = {
        "name": "tuned",
        "dataset": "msd",
        "network": NETWORK,
        "model": "scratch",
        "split": {"test": 0.4, "validation": 0.2},
        "training": TRAINING,
        "threads": 1,
    }
    model = run(said, "finetune", finetune, FinetuneConfig.model_validate(common | tuned)).summary["path"]
    keys = {"store": store, "tracking": tracking, "threads": 1, "model": model}
    scores = EvaluateConfig.model_validate(keys | {"output": str(folder / "evaluation"), "runs": runs})
    run(said, "evaluate", evaluate, scores)
    for name, place in (("nifti", "msd/imagesTr"), ("itk", "itk/images"), ("dicom", "dicom/d0/study/series")):
        values = {"input": str(source / place), "output": str(folder / "predictions" / name)}
        images = PredictConfig.model_validate(values | {"model": model, "tracking": tracking, "threads": 1})
        run(said, f"predict-{name}", predict, images)
    for target in ("nnunet", "monai", "safetensors"):
        values = {"to": target, "output": str(folder / "exports" / target)}
        run(said, target, export, ExportConfig.model_validate(keys | values))
    return Written(folder, said)


def test_no_field_of_a_header_is_written_anywhere(written: Written) -> None:
    assert places([CANARY, UID], written.folder) == []


@pytest.mark.parametrize("job", JOBS)
def test_no_job_says_what_a_header_holds(written: Written, job: str) -> None:
    texts = {name: text for name, text in written.said.items() if name.startswith(job)}
    assert texts
    assert [name for name, text in texts.items() if CANARY in text or UID in text] == []


def test_damaged_files_were_told_of(written: Written) -> None:
    """The two reasons come from readers that had the word before them."""
    assert "scan_5.nii.gz: truncated" in written.said["preprocess"]
    assert "d2" in written.said["preprocess"]
    assert "scan_5" in written.said["predict-nifti"]


def test_what_was_written_is_all_there(written: Written) -> None:
    """A search of nothing finds nothing: each kind of output was searched."""
    for pattern in OUTPUTS:
        assert list(written.folder.glob(pattern)), pattern
