"""A study small enough for tests: two tasks of blobs, a network of a few thousand weights, seconds in all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from hssl_dist.config.study import StudyConfig
from hssl_dist.console import Console
from hssl_dist.jobs import study
from hssl_dist.jobs.study_cells import read_cell
from hssl_dist.records import Outcome
from hssl_dist.segmentation.study_cells import StudyCell
from hssl_dist.tracking.client import connect
from tests.tiny_network import NETWORK
from tests.tiny_store import write_blobs

TASKS = ("blobs", "spots")
TRAINING = {"steps": 4, "patch_size": (4, 8, 8), "validate_every": 2, "log_every_steps": 2}
BLOBS_ALONE = ({"dataset": "blobs", "training": TRAINING},)


def write_store(folder: Path) -> None:
    """The tasks' datasets, in `folder/store`."""
    for task in TASKS:
        write_blobs(str(folder / "store"), task)


def config(folder: Path, **changes: Any) -> StudyConfig:
    """All below `folder`; two arms, one share and subset of the labels: four cells."""
    values: dict[str, Any] = {
        "name": "tiny",
        "tasks": [{"dataset": task, "training": TRAINING} for task in TASKS],
        "arms": ["scratch", "hssl-multi"],
        "fractions": (0.5,),
        "subsets": 1,
        "seeds": (0,),
        "split": {"test": 0.25, "validation": 0.25},
        "pretrain": {
            "global_batch": 4,
            "sampling": {"patch_size": (4, 8, 8), "block_size": 2},
            "network": NETWORK,
            "objective": {"projection_size": 8, "dense_points": 8, "dense_distance": 2.0},
            "encoder": {"steps": 2, "warmup_steps": 1},
            "decoder": {"steps": 2, "warmup_steps": 1},
        },
        "store": {"url": str(folder / "store")},
        "runs": str(folder / "runs"),
        "output": str(folder / "studies"),
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
    }
    return StudyConfig.model_validate(values | changes)


def run(config: StudyConfig, console: Console | None = None) -> Outcome:
    """What a study comes to; nobody reads what it says, without a console."""
    return study.run(config, console or Console(io.StringIO()))


def cells_of(config: StudyConfig) -> dict[str, StudyCell]:
    """Its finished cells by their ids."""
    folder = Path(config.results) / "cells"
    return {path.stem: read_cell(str(path)) for path in folder.glob("*.json")}


def runs_of(config: StudyConfig) -> list[Any]:
    """The study's own run in MLflow and those of its pieces."""
    found = connect(config.tracking).search_runs(["1"])
    return [run for run in found if f"{run.data.tags['hssl.run']}-".startswith(f"{config.name}-")]
