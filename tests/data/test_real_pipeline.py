"""The whole pipe on the real challenge data: a shortened run of all verbs, and all of the preprocessing."""

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import zarr
from ome_zarr_models import open_ome_zarr

from hssl_dist.config.parts import TrackingConfig
from hssl_dist.store import read_manifest, verify
from hssl_dist.tracking.client import connect

ROOT = Path(__file__).parents[2]
DATASETS = {"hippocampus": 260, "acdc": 200, "lidc": 383, "open-ms": 17}

# Few of the files of each dataset, chosen so that splits by patient have something to split.
FEW = {
    "Task04_Hippocampus": ("dataset.json", "*_00[1-9].nii.gz", "*_01?.nii.gz", "*_02?.nii.gz"),
    "Dataset027_ACDC": ("dataset.json", "patient00[1-5]_*"),
    "LIDC_nodules": ("LIDC-IDRI-000?_*",),
    "open_ms_bids": ("dataset_description.json", "participants.tsv", "sub-07_*", "sub-101_*"),
}

FOLDERS = {"hippocampus": "Task04_Hippocampus", "acdc": "Dataset027_ACDC"}

pytestmark = pytest.mark.real


@pytest.fixture
def few_cases(real_data: Path, tmp_path: Path) -> Path:
    """The datasets' folders with a few of their files; a dataset.json lists those alone."""
    root = tmp_path / "few"
    for name, patterns in FEW.items():
        for pattern in patterns:
            for path in sorted((real_data / name).rglob(pattern)):
                target = root / name / path.relative_to(real_data / name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    decathlon = root / "Task04_Hippocampus"
    description = json.loads((decathlon / "dataset.json").read_text())
    for part, of in (("training", lambda entry: entry["image"]), ("test", lambda entry: entry)):
        description[part] = [entry for entry in description[part] if (decathlon / of(entry)).is_file()]
    (decathlon / "dataset.json").write_text(json.dumps(description))
    return root


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_from_raw_files_to_scores(
    few_cases: Path, tmp_path: Path, run_verb: Callable[..., dict[str, Any]]
) -> None:
    places = ("--store.url", str(tmp_path / "store"), "--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db")
    runs = ("--runs", str(tmp_path / "runs"))
    preprocess = ("--config", "configs/preprocess/real.yaml", "--source_root", str(few_cases))
    summary = run_verb("preprocess", *preprocess, *places[:2])
    assert set(summary["datasets"]) == set(DATASETS)
    assert all(dataset["cases"] > 0 for dataset in summary["datasets"].values())

    short = ("--runner", "inline", "--global_batch", "8", "--encoder.steps", "2", "--decoder.steps", "2")
    pretrained = run_verb("pretrain", "--config", "configs/pretrain/real.yaml", *places, *runs, *short)
    assert pretrained["status"] == "done"

    for dataset in ("hippocampus", "acdc"):
        tuned = run_verb(
            "finetune", "--config", f"configs/finetune/real-{dataset}.yaml", *places, *runs,
            "--training.steps", "2", "--training.validate_every", "2", "--training.validation_overlap", "0",
        )  # fmt: skip
        output = tmp_path / f"scores-{dataset}"
        scored = run_verb(
            "evaluate", "--model", f"models:/hssl-{dataset}@latest", *places, *runs, "--output", str(output),
            "--overlap", "0",
        )  # fmt: skip
        rows = list(csv.DictReader((output / "scores.csv").read_text().splitlines()))
        classes = read_manifest(str(tmp_path / "store"), dataset).header.classes
        assert {row["class"] for row in rows} == set(classes.values())
        assert len(rows) % len(classes) == 0
        assert tuned["status"] == scored["status"] == "done"
        _walk_back(output / "scores.json", tmp_path, few_cases)
        predict_and_compare(few_cases / FOLDERS[dataset], tmp_path, dataset, run_verb, places)


def _walk_back(scores: Path, root: Path, raw: Path) -> None:
    """From scores to the pretraining run and to the bytes of the raw files, by what each step names."""
    found = json.loads(scores.read_text())
    lineage = found["lineage"]
    client = connect(TrackingConfig(uri=f"sqlite:///{root}/mlflow.db"))
    tuned = client.get_model_version(*lineage["model"].split("/")[1:])
    parent = client.get_model_version(*tuned.tags["hssl.parent_model"].split("/")[1:])
    assert client.get_run(parent.run_id).data.tags["hssl.job"] == "pretrain"
    assert parent.run_id == tuned.tags["hssl.parent_run"]

    manifests = {name: read_manifest(str(root / "store"), name) for name in DATASETS}
    name = lineage["dataset"]
    assert tuned.tags[f"hssl.manifest.{name}"] == lineage["manifest"] == manifests[name].sha256
    assert {key: parent.tags[f"hssl.manifest.{key}"] for key in DATASETS} == {
        key: manifest.sha256 for key, manifest in manifests.items()
    }
    by_hash = {hashlib.sha256(path.read_bytes()).hexdigest() for path in raw.rglob("*") if path.is_file()}
    scored = {case["case"] for case in found["cases"]}
    sources = {
        source.sha256 for case in manifests[name].cases if case.id in scored for source in case.sources
    }
    assert len(sources) == 2 * len(scored)  # an image and a label each
    assert sources <= by_hash


def predict_and_compare(
    root: Path, place: Path, dataset: str, run_verb: Callable[..., dict[str, Any]], places: tuple[str, ...]
) -> None:
    """Label maps of all training images lie on their images' grids, and on their labels'."""
    labels = place / f"labels-{dataset}"
    predicted = run_verb(
        "predict", "--model", f"models:/hssl-{dataset}@latest", *places[2:],
        "--input", str(root / "imagesTr"), "--output", str(labels), "--overlap", "0",
    )  # fmt: skip
    assert predicted["cases"] == predicted["predicted"] > 0
    assert sorted(path.name for path in labels.glob("*.nii.gz")) == sorted(
        path.name for path in (root / "labelsTr").iterdir()
    )
    for path in labels.glob("*.nii.gz"):
        found = nibabel.load(path)
        image = nibabel.load(next((root / "imagesTr").glob(f"{path.name.removesuffix('.nii.gz')}*")))
        assert found.shape == image.shape
        for code in ("qform_code", "sform_code"):
            assert found.header[code] == image.header[code]
        np.testing.assert_array_equal(found.affine, image.affine)
        np.testing.assert_array_equal(found.header.get_qform(), image.header.get_qform())
        np.testing.assert_array_equal(found.header.get_zooms(), image.header.get_zooms())


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_all_real_datasets(real_store: Any, real_data: Path) -> None:
    for name, cases in DATASETS.items():
        manifest = read_manifest(str(real_store.url), name)
        quarantined = real_store.first["datasets"][name]["quarantined"]
        assert len(manifest.cases) + len(quarantined) == cases
        verify(str(real_store.url), name)
    assert real_store.first_s < 240, f"first run took {real_store.first_s:.0f} s"
    assert real_store.second_s < 15, f"second run took {real_store.second_s:.1f} s"
    for dataset in real_store.second["datasets"].values():
        assert dataset["written"] == 0


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_every_image_is_a_valid_ome_zarr(real_store: Any) -> None:
    seen = 0
    for name in DATASETS:
        for record in read_manifest(str(real_store.url), name).cases:
            group = zarr.open_group(real_store.url / name / record.image_path, mode="r")
            open_ome_zarr(group, version="0.5")
            seen += 1
            if record.labelled:
                label = zarr.open_group(
                    real_store.url / name / record.image_path / "labels/segmentation", mode="r"
                )
                open_ome_zarr(label, version="0.5")
    assert seen >= 0.99 * sum(DATASETS.values())
