"""Who has looked at a study's patients: test patients are scored by one study, unless another asks for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hssl_dist.errors import ConfigError
from hssl_dist.files.sealed_json import read_sealed, sealed
from hssl_dist.jobs.looks import read_looks
from hssl_dist.sampling.splits import split_manifest
from hssl_dist.store import read_manifest
from tests import tiny_study
from tests.tiny_study import cells_of, run, runs_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store."""
    folder = tmp_path_factory.mktemp("reporting")
    tiny_study.write_store(folder)
    return folder


def test_test_patients_are_scored_by_one_study_unless_asked_for(folder: Path, tmp_path: Path) -> None:
    place = {
        "runs": str(tmp_path / "runs"),
        "output": str(tmp_path / "studies"),
        "tasks": tiny_study.BLOBS_ALONE,
    }
    tuned = tiny_study.config(folder, name="tuned", arms=["scratch"], **place)
    assert run(tuned).status == "done"
    reports = tuned.model_copy(update={"part": "test"})
    runs_before = len(runs_of(reports))
    summary = run(reports).summary
    assert (
        len(runs_of(reports)) == runs_before
    )  # the networks are those that were tuned; they are only scored
    assert summary["looks"]["blobs"] == {"patients": 2, "looks": 1}
    cells = cells_of(reports)
    test = split_manifest(read_manifest(tuned.store.url, "blobs"), tuned.split).test
    scored = cells["blobs-f0.5-s0-r0-scratch"]
    assert (scored.part, {case.patient for case in scored.cases}) == ("test", set(test))
    assert set(cells_of(tuned)) == set(cells)

    assert run(reports).summary["looks"]["blobs"]["looks"] == 1
    second = tiny_study.config(folder, name="second", arms=["scratch"], part="test", **place)
    with pytest.raises(ConfigError) as caught:
        run(second)
    assert str(caught.value).startswith(
        "2 of the 2 test patients of 'blobs' were scored as test patients by the study 'tuned' of another "
        "config ("
    )
    assert not (tmp_path / "runs/second-blobs-f0.5-s0-r0-scratch").exists()
    again = run(second.model_copy(update={"look_again": True})).summary
    assert again["looks"]["blobs"] == {"patients": 2, "looks": 2}
    looks = {(look.study, look.part): look for look in read_looks(str(tmp_path / "runs"), "blobs")}
    assert set(looks) == {("tuned", "validation"), ("tuned", "test"), ("second", "test")}
    assert looks["tuned", "test"].patients == test
    assert run(reports).status == "done"  # the first to report goes on, whoever has looked since


def test_patients_that_were_tuned_on_are_no_test_patients(folder: Path, tmp_path: Path) -> None:
    place = {"runs": str(tmp_path / "runs"), "output": str(tmp_path / "out"), "tasks": tiny_study.BLOBS_ALONE}
    folds = [{"folds": 4, "fold": fold, "validation": 0.25} for fold in (0, 1)]
    tuned = tiny_study.config(folder, name="tuned", arms=["scratch"], split=folds[0], **place)
    manifest = read_manifest(tuned.store.url, "blobs")
    seen = set(split_manifest(manifest, tuned.split).validation)
    assert run(tuned).status == "done"
    splits = [tiny_study.config(folder, split={**folds[0], "fold": fold}).split for fold in range(4)]
    split = next(split for split in splits if seen & set(split_manifest(manifest, split).test))
    reports = tiny_study.config(folder, name="reports", arms=["scratch"], split=split, part="test", **place)
    with pytest.raises(ConfigError) as caught:
        run(reports)
    assert "were scored as validation patients by the study 'tuned' of another config (" in str(caught.value)
    assert "; keep the split that it was tuned with, or set look_again, " in str(caught.value)
    again = run(reports.model_copy(update={"look_again": True})).summary
    assert again["looks"]["blobs"]["looks"] == 2


def test_a_part_without_patients_is_told_before_anything_runs(folder: Path, tmp_path: Path) -> None:
    config = tiny_study.config(
        folder, name="empty", split={"test": 0.25, "validation": 0.0}, runs=str(tmp_path)
    )
    with pytest.raises(ConfigError, match="'blobs' has no validation patient to score; change split or part"):
        run(config)
    assert not list(tmp_path.iterdir())


def test_pairs_of_another_precision_are_told_before_any_number(folder: Path, tmp_path: Path) -> None:
    """A slice that ran on other hardware, as its cells would say it."""
    config = tiny_study.config(folder, name="slices", tasks=tiny_study.BLOBS_ALONE, output=str(tmp_path))
    run(config)
    assert {cell.precision for cell in cells_of(config).values()} == {"float32"}
    page, said = Path(config.results) / "report.html", "cells of blobs were trained in another precision than"
    assert said not in page.read_text()
    (name,) = [name for name in cells_of(config) if not name.endswith("scratch")]
    path = Path(config.results) / "cells" / f"{name}.json"
    there = read_sealed(path.name, path.read_bytes())
    path.write_text(json.dumps(sealed(there | {"precision": "bfloat16"})))
    run(config)
    assert f"1 {said}" in page.read_text()
