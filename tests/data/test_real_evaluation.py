"""Real label maps, moved by known distances, through the verb as its users run it."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from scipy import ndimage

CASES = ("patient001_frame01", "patient001_frame12", "patient002_frame01")


@pytest.mark.real
def test_acdc_labels_moved_by_known_distances(
    real_data: Path, run_verb: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Slices of 10 mm, in-plane 1.4 to 1.6 mm: scores against distance transforms of whole volumes."""
    source = real_data / "Dataset027_ACDC" / "labelsTr"
    expected = {}
    for folder in ("labels", "moved"):
        (tmp_path / folder).mkdir()
    for case in CASES:
        image = nibabel.load(source / f"{case}.nii.gz")
        label = np.asarray(image.dataobj).astype(np.uint8)
        moved = np.roll(label, (3, -2), axis=(0, 1))
        spacing = image.header.get_zooms()
        for folder, array in (("labels", label), ("moved", moved)):
            nibabel.save(nibabel.Nifti1Image(array, image.affine), tmp_path / folder / f"{case}.nii.gz")
        for value in (1, 2, 3):
            expected[case, value] = _hd95(moved == value, label == value, spacing)

    summary = run_verb(
        "evaluate",
        *("--predictions", f"same={tmp_path / 'labels'}", "--predictions", f"moved={tmp_path / 'moved'}"),
        *("--labels", str(tmp_path / "labels"), "--dataset", str(real_data / "Dataset027_ACDC")),
        *("--patient_pattern", "(patient[0-9]+)_", "--output", str(tmp_path / "out"), "--threads", "1"),
    )

    assert (summary["n_cases"], summary["n_patients"], summary["dice_mean"]) == (3, 2, 1.0)
    assert set(summary["dice"]) == {"RV", "MLV", "LVC"}
    with (tmp_path / "out/scores.csv").open() as stream:
        rows = {(row["set"], row["case"], int(row["value"])): row for row in csv.DictReader(stream)}
    for (case, value), hd95_mm in expected.items():
        same, moved = rows["same", case, value], rows["moved", case, value]
        assert (float(same["nsd"]), float(same["hd95_mm"])) == (1.0, 0.0)
        assert float(moved["hd95_mm"]) == pytest.approx(hd95_mm, rel=1e-4)
        assert float(moved["volume_error_ml"]) == 0.0


def _hd95(prediction: np.ndarray, label: np.ndarray, spacing: tuple[float, ...]) -> float:
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (prediction, label)]
    apart = [ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    return float(max(np.percentile(apart[1][edges[0]], 95), np.percentile(apart[0][edges[1]], 95)))
