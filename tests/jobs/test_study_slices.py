"""A study run in slices: the same study as one that is run at once, with one look at its test patients."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from hssl_dist.config.study import StudyConfig
from hssl_dist.jobs.looks import Look, read_looks
from hssl_dist.jobs.study_plan import Plan
from tests.tiny_study import TASKS, config, run, write_store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two tasks."""
    folder = tmp_path_factory.mktemp("slices")
    write_store(folder)
    return folder


def cells(settings: StudyConfig) -> dict[str, Any]:
    """What the cells came to, by their ids."""
    files = sorted((Path(settings.results) / "cells").iterdir())
    whole = {file.stem: json.loads(file.read_text()) for file in files}
    return {
        name: {key: cell[key] for key in ("labelled", "curve", "best_step", "cases")}
        for name, cell in whole.items()
    }


def looks(settings: StudyConfig, task: str) -> list[Look]:
    return read_looks(settings.runs, task)


def test_slices_make_the_study_that_is_run_at_once(folder: Path) -> None:
    whole = config(folder, name="whole", seeds=(0, 1))
    run(whole)

    def sliced(**changes: Any) -> StudyConfig:
        own = {"runs": str(folder / "sliced"), "tracking": {"uri": f"sqlite:///{folder}/sliced.db"}}
        return config(folder, name="sliced", seeds=(0, 1), **own | changes)

    first, second = TASKS
    slices = [
        {"tasks": [first], "seeds": [0], "arms": ["scratch"]},
        {"tasks": [first], "seeds": [0]},
        {"tasks": [second], "seeds": [0]},
        {"seeds": [1]},
    ]
    done = []
    for number, only in enumerate(slices):
        for part in ("validation", "test"):
            outcome = run(sliced(part=part, only=only))
            assert outcome.status == "done"
        done.append(outcome.summary["cells"])
        names = set(cells(sliced()))
        assert all(name.endswith("-scratch") for name in names) == (number == 0)
        assert all(name.startswith(f"{first}-") for name in names) == (number <= 1)
        assert any("-r1-" in name for name in names) == (number == 3)
        looked = {task: len(looks(sliced(), task)) for task in TASKS}
        assert looked == {first: 2, second: 2 if number > 1 else 0}
    assert done == [1, 2, 4, 8]

    # Pretraining's seeds and content are the same, so networks and scores are, to the last bit.
    assert {name: cell["cases"] for name, cell in cells(sliced()).items()} == {
        name: cell["cases"] for name, cell in cells(whole).items()
    }
    assert cells(sliced()) == cells(whole)
    counted = run(sliced(part="test")).summary["looks"]
    assert {task: entry["looks"] for task, entry in counted.items()} == dict.fromkeys(TASKS, 1)


def test_slices_at_the_same_time_keep_what_each_has_done(folder: Path, tmp_path: Path) -> None:
    own = {"runs": str(tmp_path / "runs"), "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"}}
    settings = config(folder, name="at-once", output=str(tmp_path), seeds=(0, 1), **own)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    command = [sys.executable, "-m", "hssl_dist.study", "--config", str(tmp_path / "config.yaml")]

    def run_slice(seed: int) -> int:
        return subprocess.run([*command, "--only.seeds", f"[{seed}]"], timeout=300).returncode

    with ThreadPoolExecutor() as slices:
        assert list(slices.map(run_slice, settings.seeds)) == [0, 0]
    plan = Plan.of(settings)
    assert set(cells(settings)) == {cell.id for cell in plan.cells}
    kept = {path.stem for path in (tmp_path / "at-once" / "pretrained").iterdir()}
    assert kept == {item.name for item in plan.pretrainings}
    assert len(kept) == 2
