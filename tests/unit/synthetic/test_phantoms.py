"""Phantoms: the readers find them, their voxels survive the files, and a seed is all that decides them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from hssl_dist.datasets import discover
from hssl_dist.imaging import load_case, write_nifti
from hssl_dist.synthetic import TASKS, write_phantoms, write_task
from hssl_dist.synthetic.anatomy import Grid, deformed, ellipsoid, smooth_noise
from hssl_dist.synthetic.phantoms import patient_cases

LAYOUTS = ("msd", "nnunet", "bids", "folder")


def _hashes(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_equal_seeds_give_equal_files_and_others_do_not(tmp_path: Path) -> None:
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_phantoms(tmp_path / folder, seed, write_nifti, patients=2)
    first, second, third = (_hashes(tmp_path / folder) for folder in "abc")
    assert first == second
    volumes = [name for name in first if "image" in name]
    assert volumes
    assert all(first[name] != third[name] for name in volumes)


def test_three_tasks_in_three_layouts_and_two_groups(tmp_path: Path) -> None:
    configs = write_phantoms(tmp_path, 0, write_nifti, patients=5)
    assert [(c.name, c.layout, c.task, c.group) for c in configs] == [
        ("phantom-liver", "msd", "liver", "abdomen-ct"),
        ("phantom-kidney", "nnunet", "kidney", "abdomen-ct"),
        ("phantom-heart", "folder", "heart", "heart-mr"),
    ]
    datasets = [discover(config, str(tmp_path)) for config in configs]
    assert [len(dataset.cases) for dataset in datasets] == [5, 5, 10]
    assert [sum(case.label is None for case in dataset.cases) for dataset in datasets] == [1, 0, 0]
    assert [case.split for case in datasets[0].cases] == ["train"] * 4 + ["test"]
    assert [len({case.patient for case in dataset.cases}) for dataset in datasets] == [5, 5, 5]
    assert [dataset.modalities for dataset in datasets] == [("ct",), ("ct",), ("mr",)]
    assert datasets[2].classes == {1: "right ventricle", 2: "myocardium", 3: "left ventricle"}


@pytest.mark.parametrize("task", ["liver", "heart"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_holds_the_same_voxels(tmp_path: Path, task: str, layout: str) -> None:
    config = write_task(tmp_path, task, 1, write_nifti, patients=3, layout=layout)
    dataset = discover(config, str(tmp_path))
    made = [case for number in range(3) for case in patient_cases(task, 1, number, 3)]
    assert len(dataset.cases) == len(made)
    assert len({case.patient for case in dataset.cases}) == 3
    assert {case.orientation for case in made} <= {"RAS", "LPS"}
    for found, case in zip(dataset.cases, made, strict=True):
        volume = load_case(found, dataset.classes, max_voxels=1 << 20)
        assert volume.spacing_mm == pytest.approx(case.phantom.spacing_mm)
        np.testing.assert_array_equal(volume.image[0], np.round(case.phantom.image))
        assert volume.label is not None
        np.testing.assert_array_equal(volume.label, case.phantom.label)


def test_both_orientations_occur() -> None:
    orientations = [patient_cases("heart", 0, number, 4)[0].orientation for number in range(4)]
    assert set(orientations) == {"RAS", "LPS"}


@pytest.mark.parametrize("task", sorted(TASKS))
def test_phantoms_are_plausible(task: str) -> None:
    shapes, spacings = set(), set()
    for number in range(6):
        for case in patient_cases(task, 0, number, 6):
            image, label = case.phantom.image, case.phantom.label
            voxel_ml = float(np.prod(case.phantom.spacing_mm)) / 1000
            volumes = np.bincount(label.ravel(), minlength=4) * voxel_ml
            shapes.add(image.shape)
            spacings.add(case.phantom.spacing_mm)
            assert np.isfinite(image).all()
            if task == "heart":
                assert image.min() >= 0
                assert image.max() < 32767
                assert image[label == 3].mean() > 1.5 * image[label == 2].mean()
                assert (volumes[1:] > 10).all()
                assert (volumes[1:] < 350).all()
            else:
                assert image.min() >= -1024
                assert 40 < image[label == 1].mean() < 260
                organ_ml = (350, 2500) if task == "liver" else (60, 500)
                assert organ_ml[0] < volumes[1] + volumes[2] < organ_ml[1]
    assert len(shapes) >= 4
    assert len(spacings) >= 4


def test_phases_of_a_patient_share_grid_and_anatomy() -> None:
    diastole, systole = (case.phantom for case in patient_cases("heart", 0, 2, 3))
    assert diastole.label.shape == systole.label.shape
    assert diastole.spacing_mm == systole.spacing_mm
    ejection = 1 - (systole.label == 3).sum() / (diastole.label == 3).sum()
    assert 0.4 < ejection < 0.85
    assert ((diastole.label == 3) & (systole.label == 3)).sum() > 0.9 * (systole.label == 3).sum()


def test_the_middle_of_a_grid_is_the_origin() -> None:
    points = Grid((3, 5, 7), (8.0, 2.0, 1.0)).coordinates()
    assert points[:, 1, 2, 3].tolist() == [0.0, 0.0, 0.0]
    assert points[:, 2, 4, 6].tolist() == [8.0, 4.0, 3.0]


def test_an_ellipsoid_has_the_volume_of_the_formula() -> None:
    grid = Grid((60, 50, 40), (1.0, 1.0, 1.0))
    inside = ellipsoid(grid.coordinates(), (1.0, 0.0, -1.0), (20.0, 15.0, 10.0))
    assert int(inside.sum()) == pytest.approx(4 / 3 * np.pi * 20 * 15 * 10, rel=0.01)


@pytest.mark.parametrize("length_mm", [1.5, 8.0, 60.0])
def test_smooth_noise_has_unit_variance_at_every_length(length_mm: float) -> None:
    noise = smooth_noise(np.random.default_rng(0), Grid((10, 40, 40), (8.0, 1.5, 1.5)), length_mm)
    assert float(noise.mean()) == pytest.approx(0, abs=1e-4)
    assert float(noise.std()) == pytest.approx(1, abs=1e-4)


def test_deformation_moves_points_by_about_the_amplitude() -> None:
    grid = Grid((20, 32, 32), (4.0, 4.0, 4.0))
    moves = deformed(np.random.default_rng(0), grid, 5.0, 30.0) - grid.coordinates()
    assert float(moves.std()) == pytest.approx(5.0, rel=0.01)
