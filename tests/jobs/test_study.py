"""Studies on a tiny store: run, run again, killed, failing, on Ray."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean

import pytest
import yaml

from hssl_dist.config.evaluate import IntervalConfig
from hssl_dist.config.parts import TrackingConfig
from hssl_dist.config.study import StudyConfig
from hssl_dist.console import Console
from hssl_dist.errors import ConfigError, Interrupted, MissingError, StorageError
from hssl_dist.files.sealed_json import read_sealed
from hssl_dist.jobs.study_cells import Pretrained, with_way
from hssl_dist.jobs.study_plan import Plan
from hssl_dist.sampling.splits import split_manifest
from hssl_dist.store import read_manifest
from hssl_dist.tracking.client import connect
from tests import browser, tiny_study
from tests.tiny_study import cells_of, run, runs_of

DEADLINE_S = 120.0
UNLIKE = {"seconds", "run_id", "model", "parent_model"}
"""What two runs of the same cell need not share."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store, and a study that has run there."""
    folder = tmp_path_factory.mktemp("study")
    tiny_study.write_store(folder)
    assert run(tiny_study.config(folder)).status == "done"
    return folder


def is_like_the_undisturbed(folder: Path, config: StudyConfig) -> bool:
    """Whether its cells are those of the study of the fixture, as far as they are in both."""
    alone = cells_of(tiny_study.config(folder))
    return all(
        cell.model_dump(exclude=UNLIKE) == alone[name].model_dump(exclude=UNLIKE)
        for name, cell in cells_of(config).items()
    )


# ---------------------------------------------------------------------------------------------------- results


def test_a_study_leaves_every_cell_its_pretrainings_and_a_summary(folder: Path) -> None:
    config = tiny_study.config(folder)
    cells, plan = cells_of(config), Plan.of(config)
    assert set(cells) == {cell.id for cell in plan.cells}
    (kept,) = (Path(config.folder) / "pretrained").iterdir()
    pretrained = Pretrained.model_validate(read_sealed(kept.name, kept.read_bytes()))
    assert kept.name == f"{pretrained.name}.json"
    assert (pretrained.name, pretrained.arms, pretrained.tasks) == (
        plan.pretrainings[0].name,
        ("hssl-multi",),
        tiny_study.TASKS,
    )
    assert (pretrained.steps, pretrained.samples, pretrained.model) == (4, 16, "models:/tiny-hssl-multi/1")
    for planned in plan.cells:
        cell = cells[planned.id]
        split = split_manifest(read_manifest(config.store.url, cell.task), config.split)
        assert {case.patient for case in cell.cases} == set(split.validation)
        assert set(cell.labelled) < set(split.train)
        assert [step for step, _ in cell.curve] == [2, 4]
        assert (cell.part, cell.steps) == ("validation", 4)
        best = max(cell.curve, key=lambda entry: entry[1])
        assert cell.best_step == best[0]
        assert cell.parent_model == (None if cell.arm == "scratch" else pretrained.model)
    summary = json.loads((Path(config.results) / "summary.json").read_text())
    assert (summary["cells"], summary["planned"], summary["failed"]) == (4, 4, [])
    assert summary["looks"] == {task: {"patients": 2, "looks": 1} for task in tiny_study.TASKS}


def test_a_study_writes_its_tables_and_its_page_and_logs_them(folder: Path) -> None:
    config = tiny_study.config(folder)
    results = Path(config.results)
    rows = list(csv.DictReader((results / "table.csv").read_text().splitlines()))
    assert [(row["task"], row["arm"]) for row in rows] == [
        (task, arm) for task in tiny_study.TASKS for arm in ("scratch", "hssl-multi")
    ]
    cells = {(cell.task, cell.arm): cell for cell in cells_of(config).values()}
    for row in rows:
        patients: dict[str, list[float]] = {}
        for case in cells[row["task"], row["arm"]].cases:
            known = [dice for dice in case.dice.values() if dice is not None]
            patients.setdefault(case.patient, []).append(fmean(known))
        assert int(row["patients"]) == len(patients)
        assert float(row["dice"]) == pytest.approx(fmean(map(fmean, patients.values())), abs=1e-6)
    page = (results / "report.html").read_text()
    summary = json.loads((results / "summary.json").read_text())
    assert "<dt>Multi-domain HSSL</dt><dd>pretrained without labels on images of all datasets; taken" in page
    assert (
        page.count("Multi-domain HSSL, seed 0, for blobs and spots ends at ") >= 5
    )  # a chart for each metric
    for told in (summary["config_hash"], "Health of the pretraining", "Scratch", *tiny_study.TASKS):
        assert told in page
    (parent,) = [run for run in runs_of(config) if run.data.tags["hssl.job"] == "study"]
    artifacts = connect(config.tracking).list_artifacts(parent.info.run_id, "validation")
    logged = {Path(artifact.path).name for artifact in artifacts}
    assert logged >= {"cells.csv", "table.csv", "results.json", "report.html"}


def test_the_page_of_a_run_is_whole_in_a_browser(folder: Path, chromium: browser.Browser) -> None:
    config = tiny_study.config(folder)
    results = Path(config.results)
    page = chromium.open((results / "report.html").as_uri())
    assert page.complaints() == []
    assert page.requests() == [(results / "report.html").as_uri()]
    drawn = sum(min(3, len(cell.cases)) for cell in cells_of(config).values())  # best, median and worst
    assert page.evaluate("document.images.length") == drawn
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    script = """[...document.querySelectorAll('#numbers tbody tr')].map(row => [row.cells[0].textContent,
        row.cells[2].textContent, ...[...row.cells[7].querySelectorAll('data')].map(one => one.value)])"""
    titles = {"scratch": "Scratch", "hssl-multi": "Multi-domain HSSL"}
    assert page.evaluate(script) == [
        [
            row["task"],
            titles[row["arm"]],
            *(row[key] for key in ("dice", "dice_low", "dice_high") if row[key]),
        ]
        for row in csv.DictReader((results / "table.csv").read_text().splitlines())
    ]


def test_what_is_kept_of_predictions_is_told_also_of_cells_of_before(folder: Path) -> None:
    config = tiny_study.config(folder)
    cells = cells_of(config)
    ways = {name: cell.keep_largest for name, cell in cells.items()}
    for name, way in ways.items():
        noted = json.loads((Path(config.runs) / f"tiny-{name}" / "done.json").read_text())["summary"]
        assert way == noted["keep_largest"] is not None
    found = json.loads((Path(config.results) / "results.json").read_text())["selection"]
    said = found["chosen on validation patients, blobs"]
    assert said.startswith("of predictions are kept: ")
    assert sum(int(part.rpartition(" in ")[2]) for part in said.split(", ")) == 2
    cell = next(cell for cell in Plan.of(config).cells if cell.task.dataset == "blobs")
    before = cells[cell.id].model_copy(update={"keep_largest": None})
    assert with_way(config, cell, before) == cells[cell.id]
    gone = config.model_copy(update={"runs": str(folder / "gone")})
    assert with_way(gone, cell, before).keep_largest is None


def test_cells_of_a_pair_share_their_labels(folder: Path) -> None:
    cells = cells_of(tiny_study.config(folder))
    for name, cell in cells.items():
        assert cell.labelled == cells[f"{name.rpartition('-r0-')[0]}-r0-scratch"].labelled


def test_every_run_is_nested_under_the_study_s(folder: Path) -> None:
    config = tiny_study.config(folder)
    runs = {run.data.tags["hssl.run"]: run for run in runs_of(config)}
    parent = runs.pop("tiny")
    assert parent.data.tags["hssl.job"] == "study"
    assert len(runs) == 1 + 4
    for child in runs.values():
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.info.status == "FINISHED"
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == {"cells_done": 4, "pieces_failed": 0}
    for name, cell in cells_of(config).items():
        assert runs[f"tiny-{name}"].info.run_id == cell.run_id
        assert "validation_dice" in runs[f"tiny-{name}"].data.metrics


def test_running_again_does_nothing(folder: Path) -> None:
    config = tiny_study.config(folder)

    def state() -> tuple[dict[str, int], list[tuple[str, int, int]]]:
        places = (Path(config.output), Path(config.runs))
        stamps = {str(path): path.stat().st_mtime_ns for place in places for path in place.rglob("*")}
        return stamps, sorted((r.info.run_id, r.info.start_time, r.info.end_time) for r in runs_of(config))

    before = state()
    outcome = run(config)
    assert (outcome.status, outcome.summary["cells"]) == ("done", 4)
    assert state() == before


def test_a_study_grows_without_repeating_itself_but_does_not_change(folder: Path) -> None:
    config = tiny_study.config(folder, name="grows", tasks=tiny_study.BLOBS_ALONE, arms=["scratch"])
    first = run(config).summary
    stamps = {path: path.stat().st_mtime_ns for path in Path(config.results).glob("cells/*")}
    grown = config.model_copy(update={"subsets": 2, "fractions": (0.5, 1.0)})
    outcome = run(grown)
    assert (outcome.summary["cells"], outcome.summary["run_id"]) == (3, first["run_id"])
    labelled = [set(cell.labelled) for _, cell in sorted(cells_of(grown).items())]
    assert [len(patients) for patients in labelled] == [2, 2, 4]
    assert labelled[0] != labelled[1]
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    changed = [{"dataset": "blobs", "training": tiny_study.TRAINING | {"steps": 6}}]
    with pytest.raises(ConfigError) as caught:
        run(tiny_study.config(folder, name="grows", tasks=changed, arms=["scratch"]))
    assert str(caught.value) == (
        "run 'grows' was started with blobs/scratch.finetune.training.steps = 4, it is now 6; "
        "give another --name, or the values it was started with"
    )


def test_a_study_that_loses_its_tracker_and_a_task_keeps_its_results(folder: Path, tmp_path: Path) -> None:
    """Reported on one task, then on both with a new tracking server: no look more, no pretraining less."""
    place = {"output": str(tmp_path / "studies"), "runs": str(tmp_path / "runs"), "part": "test"}
    alone = tiny_study.config(folder, name="moves", tasks=tiny_study.BLOBS_ALONE, **place)
    first = run(alone).summary
    other = {"dataset": "spots", "training": tiny_study.TRAINING, "pretrain_patch_size": (4, 8, 16)}
    tasks = [*tiny_study.BLOBS_ALONE, other]
    moved = {"tracking": TrackingConfig(uri=f"sqlite:///{tmp_path}/other.db")}
    both = tiny_study.config(folder, name="moves", tasks=tasks, **place, **moved)
    outcome = run(both)
    assert outcome.status == "done"
    assert outcome.summary["run_id"] != first["run_id"]
    assert outcome.summary["looks"] == {task: {"patients": 2, "looks": 1} for task in tiny_study.TASKS}
    assert len(cells_of(both)) == 4
    page = (Path(both.results) / "report.html").read_text()
    assert "pictures of blobs: left out, " in page
    assert "pictures of spots: left out, " not in page
    run(both.model_copy(update={"tracking": alone.tracking}))  # the server of before is back
    assert "pictures of blobs: left out, " not in (Path(both.results) / "report.html").read_text()
    assert len(list(csv.DictReader((Path(both.results) / "table.csv").read_text().splitlines()))) == 4
    tuned = alone.model_copy(update={"part": "validation", "seeds": (0, 1)})
    run(tuned)
    known = {path.stem for path in (Path(both.folder) / "pretrained").iterdir()}
    assert known == {item.name for config in (both, tuned) for item in Plan.of(config).pretrainings}
    assert len(known) == 3


# -------------------------------------------------------------------------------------------- stopped, failed


def test_a_killed_study_ends_with_the_cells_of_one_that_was_left_alone(folder: Path, tmp_path: Path) -> None:
    config = tiny_study.config(folder, name="killed", output=str(tmp_path))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "hssl_dist.study", "--config", str(tmp_path / "config.yaml")]
    done = Path(config.results) / "cells"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        give_up_s = time.monotonic() + DEADLINE_S
        while not list(done.glob("[!.]*.json")) and time.monotonic() < give_up_s:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.kill()
    stamps = {path: path.stat().st_mtime_ns for path in done.glob("[!.]*.json")}
    assert 1 <= len(stamps) < 4
    assert run(config).summary["cells"] == 4
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    assert is_like_the_undisturbed(folder, config)
    nested = runs_of(config)
    assert len(nested) == 1 + 1 + 4
    assert {r.info.status for r in nested} == {"FINISHED"}


class StoppingConsole(Console):
    """Asks the process to stop when a line says so many pieces are done."""

    def __init__(self, after: int) -> None:
        super().__init__(io.StringIO())
        self._left = after

    def say(self, text: str) -> None:
        if text.endswith(": done"):
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGTERM)


def test_a_study_that_is_asked_to_stop_keeps_what_it_has(folder: Path) -> None:
    config = tiny_study.config(folder, name="stopped", arms=["scratch"])
    with pytest.raises(Interrupted, match="what is done is kept; run it again to go on"):
        run(config, StoppingConsole(1))
    assert list(cells_of(config)) == ["blobs-f0.5-s0-r0-scratch"]
    page = Path(config.results) / "report.html"
    assert "1 planned cell not there" in page.read_text()  # what a stopped study has can be read
    (parent,) = [r for r in runs_of(config) if r.data.tags["hssl.job"] == "study"]
    assert parent.info.status == "KILLED"
    outcome = run(config)
    assert (outcome.status, outcome.summary["run_id"]) == ("done", parent.info.run_id)
    assert "not there" not in page.read_text()


def test_tables_and_page_are_made_anew_when_the_question_changes(folder: Path, tmp_path: Path) -> None:
    config = tiny_study.config(folder, name="asks", tasks=tiny_study.BLOBS_ALONE, output=str(tmp_path))
    run(config)
    results = Path(config.results)
    first = json.loads((results / "results.json").read_text())
    (results / "report.html").write_text("of a run that was killed while it wrote")
    (results / "results.json").unlink()
    run(config)
    assert json.loads((results / "results.json").read_text()) == first
    assert "Health of the pretraining" in (results / "report.html").read_text()
    (results / "results.json").write_text(json.dumps(first | {"made_of": "what other code had made"}))
    run(config)
    assert json.loads((results / "results.json").read_text()) == first
    run(config.model_copy(update={"intervals": IntervalConfig(confidence=0.9)}))
    second = json.loads((results / "results.json").read_text())
    assert (first["intervals"]["confidence"], second["intervals"]["confidence"]) == (0.95, 0.9)


def test_a_failing_cell_stops_no_other_and_is_tried_again(folder: Path) -> None:
    """The first cell's run is taken by another config, as if someone had used its name."""
    config = tiny_study.config(folder, name="fails", arms=["scratch"])
    taken = Path(config.runs) / "fails-blobs-f0.5-s0-r0-scratch" / "done.json"
    taken.parent.mkdir(parents=True)
    taken.write_text(json.dumps({"trajectory": {"seed": 77}, "summary": {"model": "x"}}))
    outcome = run(config)
    assert outcome.status == "failed"
    assert list(cells_of(config)) == ["spots-f0.5-s0-r0-scratch"]
    ((name, reason),) = [tuple(entry.values()) for entry in outcome.summary["failed"]]
    assert name == "blobs-f0.5-s0-r0-scratch"
    assert reason.startswith("run 'fails-blobs-f0.5-s0-r0-scratch' was started with ")
    assert outcome.warnings == (f"{name} failed: {reason}",)
    (parent,) = [r for r in runs_of(config) if r.data.tags["hssl.job"] == "study"]
    assert parent.info.status == "FAILED"
    taken.unlink()
    again = run(config)
    assert (again.status, again.summary["cells"], again.summary["failed"]) == ("done", 2, [])
    assert again.summary["run_id"] == parent.info.run_id


def test_cells_of_a_failed_pretraining_fail_with_it(folder: Path) -> None:
    config = tiny_study.config(folder, name="barren", tasks=tiny_study.BLOBS_ALONE)
    (pretraining,) = Plan.of(config).pretrainings
    taken = Path(config.runs) / pretraining.name / "done.json"
    taken.parent.mkdir(parents=True)
    taken.write_text(json.dumps({"trajectory": {"seed": 77}, "summary": {"model": "x"}}))
    outcome = run(config)
    reasons = {entry["name"]: entry["reason"] for entry in outcome.summary["failed"]}
    assert reasons.pop(pretraining.name).startswith(f"run {pretraining.name!r} was started with ")
    assert reasons == {"blobs-f0.5-s0-r0-hssl-multi": f"its pretraining {pretraining.name} failed"}
    assert list(cells_of(config)) == ["blobs-f0.5-s0-r0-scratch"]


def test_a_dataset_that_is_not_there_is_told_before_anything_runs(folder: Path) -> None:
    with pytest.raises(MissingError, match="'none'"):
        run(
            tiny_study.config(
                folder, name="missing", tasks=[{"dataset": "none", "training": tiny_study.TRAINING}]
            )
        )
    assert not (folder / "studies/missing").exists()


def test_a_place_that_cannot_be_written_is_told_in_a_line(folder: Path, tmp_path: Path) -> None:
    """What is there of the study is a file where a folder should be."""
    config = tiny_study.config(folder, name="full", tasks=tiny_study.BLOBS_ALONE, arms=["scratch"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full/validation").write_text("")
    with pytest.raises(StorageError) as caught:
        run(config.model_copy(update={"output": str(tmp_path)}))
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}/full/validation/")
    assert " cannot be written: " in said
    assert len(said.splitlines()) == 1


# -------------------------------------------------------------------------------------------------------- Ray


@pytest.mark.usefixtures("ray_cluster")
def test_on_ray_it_gives_the_same_cells(folder: Path) -> None:
    config = tiny_study.config(folder, name="on-ray", runner="ray", tasks=tiny_study.BLOBS_ALONE)
    outcome = run(config)
    assert (outcome.summary["failed"], outcome.summary["cells"]) == ([], 2)
    assert is_like_the_undisturbed(folder, config)
