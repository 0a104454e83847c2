"""A store small enough for tests: patients with a bright and a dark blob, some voxels of noise."""

from __future__ import annotations

import numpy as np

from hssl_dist.config.preprocess import StorageConfig
from hssl_dist.records import Manifest, Volume, content_hash
from hssl_dist.store import write_manifest
from hssl_dist.store.writer import write_case
from tests.case_records import header, record

SHAPE = (6, 16, 16)
CLASSES = {1: "bright", 2: "dark"}


def write_blobs(
    root: str, dataset: str = "blobs", patients: int = 8, channels: int = 1, labelled: bool = True
) -> Manifest:
    """Patients p0, p1, ... with one case each, p0 with two, and one patient `u` without a label.

    Cases of even patients have no dark blob.
    """
    names = [("p0", "p0_b"), *((f"p{i}", f"p{i}") for i in range(patients)), ("u", "u")]
    records = []
    for patient, case in names:
        label = _label(dark=patient == "u" or int(patient[1:]) % 2 == 1)
        rng = np.random.default_rng(int(content_hash([dataset, case])[:8], 16))
        image = np.where(label == 1, 2.0, np.where(label == 2, -2.0, 0.0))
        image = np.float32(image + 0.1 * rng.normal(size=(channels, *SHAPE)))
        has_label = labelled and patient != "u"
        commit = record(
            case,
            dataset=dataset,
            patient=patient,
            labelled=has_label,
            modalities=("mr",) * channels,
            geometry={"shape": SHAPE},
            intensities=record().intensities * channels,
            foreground={"1": ((3, 4, 4),)} | ({"2": ((3, 11, 11),)} if label.max() == 2 else {}),
            objects=(),
        )
        volume = Volume(
            image, label if has_label else None, (2.0, 1.0, 1.0), commit.modalities, commit.geometry
        )
        classes = CLASSES if labelled else {}
        records.append(
            write_case(root, commit, volume, classes, StorageConfig(chunk=(8, 8, 8), shard=(8, 16, 16)))
        )
    about = header(
        dataset=dataset, task=dataset, classes=CLASSES if labelled else {}, channels=("mr",) * channels
    )
    return write_manifest(root, about, records)


def _label(dark: bool) -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[1:5, 2:7, 2:7] = 1
    if dark:
        label[1:5, 9:14, 9:14] = 2
    return label
