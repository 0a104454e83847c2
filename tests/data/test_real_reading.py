"""Discovery, reading and preparing of the real challenge data, and what its quirks must not break."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hssl_dist.config.preprocess import DatasetConfig, StorageConfig
from hssl_dist.datasets import discover
from hssl_dist.errors import InputError
from hssl_dist.imaging import load_case, prepare, resolve_recipe, survey_case
from tests.restoring import restore

pytestmark = pytest.mark.real

LIMIT = 1 << 24
CONFIGS = {
    "hippocampus": {"layout": "msd", "source": "Task04_Hippocampus"},
    "acdc": {"layout": "nnunet", "source": "Dataset027_ACDC", "patient_pattern": r"^(patient\d+)_"},
    "lidc": {
        "layout": "folder",
        "source": "LIDC_nodules",
        "patient_pattern": "^(.{14})",
        "modality": "ct",
        "classes": {1: "nodule"},
    },
    "open-ms": {"layout": "bids", "source": "open_ms_bids", "classes": {1: "lesion"}},
}
EVERY = {"hippocampus": 20, "acdc": 25, "lidc": 20, "open-ms": 6}
"""One case in so many is prepared; all are read."""


def config_of(name: str) -> DatasetConfig:
    return DatasetConfig(name=name, group="g", **CONFIGS[name])


@pytest.mark.parametrize(
    ("name", "cases", "labelled", "patients", "test", "modality"),
    [
        ("hippocampus", 260, 200, 260, 60, "mr"),
        ("acdc", 200, 160, 100, 40, "mr"),
        ("lidc", 383, 383, 220, 0, "ct"),
        ("open-ms", 17, 6, 10, 0, "mr"),
    ],
)
def test_discovery_finds_what_the_data_s_readme_counts(
    real_data: Path, name: str, cases: int, labelled: int, patients: int, test: int, modality: str
):
    dataset = discover(config_of(name), str(real_data))
    assert len(dataset.cases) == cases
    assert sum(case.label is not None for case in dataset.cases) == labelled
    assert len({case.patient for case in dataset.cases}) == patients
    assert sum(case.split == "test" for case in dataset.cases) == test
    assert dataset.modalities == (modality,)


@pytest.mark.parametrize("name", CONFIGS)
def test_real_cases_are_prepared_and_their_labels_come_back(real_data: Path, name: str):
    config = config_of(name)
    dataset = discover(config, str(real_data))
    volumes = [load_case(case, dataset.classes, LIMIT) for case in dataset.cases]
    surveys = [survey_case(case.id, volume) for case, volume in zip(dataset.cases, volumes, strict=True)]
    recipe = resolve_recipe(config, dataset.classes, dataset.modalities, surveys, StorageConfig())
    for volume in volumes[:: EVERY[name]]:
        stored, intensities = prepare(volume, recipe)
        assert np.isfinite(stored.image).all()
        assert np.abs(stored.image).max() < 20
        assert stored.image.min() - 0.01 <= intensities[0].background <= stored.image.max()
        if stored.label is None or volume.label is None:
            continue
        back = restore(stored.label, stored.geometry)
        assert back.shape == volume.geometry.original_shape
        assert back.any() == volume.label.any()
        assert overlap(back, restore(volume.label, volume.geometry)) > 0.8
        if stored.spacing_mm == volume.spacing_mm:
            np.testing.assert_array_equal(back, restore(volume.label, volume.geometry))


def overlap(one: np.ndarray, two: np.ndarray) -> float:
    """Dice of the foregrounds; 1 if there is none."""
    total = int((one > 0).sum() + (two > 0).sum())
    return 2 * int(((one == two) & (one > 0)).sum()) / total if total else 1.0


def test_the_largest_and_the_thinnest_cases_are_read(real_data: Path):
    brain = discover(config_of("open-ms"), str(real_data))
    largest = next(case for case in brain.cases if case.id == "sub-07_FLAIR")
    assert load_case(largest, brain.classes, LIMIT).image.shape == (1, 182, 218, 182)
    nodules = discover(config_of("lidc"), str(real_data))
    depths = [load_case(case, nodules.classes, LIMIT).image.shape[1] for case in nodules.cases]
    assert min(depths) == 2


def test_a_truncated_real_file_is_refused(real_data: Path, tmp_path: Path):
    source = real_data / "Task04_Hippocampus" / "imagesTr" / "hippocampus_001.nii.gz"
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.nii.gz").write_bytes(source.read_bytes()[:-100])
    config = DatasetConfig(name="cut", layout="folder", source=str(tmp_path), group="g", modality="mr")
    (case,) = discover(config, "/").cases
    with pytest.raises(InputError, match=r"^a.nii.gz: truncated gzip: it ends before its checksum$"):
        load_case(case, {}, LIMIT)
