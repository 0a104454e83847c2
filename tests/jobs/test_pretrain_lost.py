"""Pretraining on Ray that loses its worker, its driver or its cluster.

The same command goes on from the newest checkpoint, and every loss is that of a run that was left alone.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hssl_dist.config.parts import RayConfig, TrackingConfig
from hssl_dist.config.pretrain import CheckpointConfig, PretrainConfig
from hssl_dist.console import Console
from hssl_dist.jobs import pretrain
from hssl_dist.tracking.history import metric_history
from tests.drivers import DEADLINE_S, Driver
from tests.ray_head import RayHead
from tests.tiny_pretraining import config, job_config, write_store

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]
STEPS = 3000
EVERY = 50
LAST = STEPS + 3
"""The decoder's steps come after."""
MIDWAY = "step 120 of "


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store and a tracking database that the module's tests share."""
    folder = tmp_path_factory.mktemp("lost")
    write_store(str(folder / "store"))
    return folder


def settings(root: Path, name: str, **changes: Any) -> PretrainConfig:
    return job_config(
        root,
        name,
        encoder=config().encoder.model_copy(update={"steps": STEPS, "learning_rate": 1e-4}),
        log_every_steps=10,
        checkpoint=CheckpointConfig(every_steps=EVERY),
        **changes,
    )


def losses(root: Path, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """All terms of the loss by step, as they were tracked."""
    history = metric_history(TrackingConfig(uri=f"sqlite:///{root}/mlflow.db"), run_id)
    return {key: values for key, values in history.items() if key.startswith("loss")}


@pytest.fixture(scope="module")
def whole(root: Path) -> dict[str, list[tuple[int, float]]]:
    """The losses of a run that was left alone, in this process."""
    found = losses(root, pretrain.run(settings(root, "whole"), Console(io.StringIO())).summary["run_id"])
    assert [step for step, _ in found["loss"]] == [*range(10, STEPS + 1, 10), LAST]
    return found


@pytest.fixture
def head(tmp_path: Path) -> Iterator[RayHead]:
    with RayHead(tmp_path) as running:
        yield running


def words(root: Path, name: str, **changes: Any) -> list[str]:
    """The command of a run on one Ray worker."""
    path = root / f"{name}.json"
    path.write_text(settings(root, name, runner="ray", **changes).model_dump_json())
    return [sys.executable, "-m", "hssl_dist.pretrain", "--config", str(path), "--json"]


def environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "HSSL_"))}


def finished(command: list[str], env: dict[str, str]) -> dict[str, Any]:
    """The summary of a run that goes to its end, going on from a checkpoint."""
    with Driver(command, env) as driver:
        assert driver.end() == 0, driver.lines[-20:]
    assert any(line.startswith("going on from the checkpoint of step ") for line in driver.lines), (
        driver.lines
    )
    summary: dict[str, Any] = json.loads(driver.lines[-1])
    return summary


# ------------------------------------------------------------------------------------------- workers, drivers


def test_a_worker_that_is_killed_is_started_again(root: Path, whole: Any) -> None:
    with Driver(words(root, "worker", max_failures=1), environment()) as driver:
        driver.wait_for(MIDWAY)
        family = psutil.Process(driver.process.pid).children(recursive=True)
        (worker,) = [process for process in family if "RayTrainWorker" in " ".join(process.cmdline())]
        worker.kill()
        driver.wait_for("going on from the checkpoint of step ")
        assert driver.end() == 0, driver.lines[-20:]
    assert losses(root, json.loads(driver.lines[-1])["run_id"]) == whole


def test_a_driver_that_is_killed_is_followed_by_the_same_command(root: Path, whole: Any) -> None:
    command = words(root, "driver")
    with Driver(command, environment()) as driver:
        driver.wait_for(MIDWAY)
        family = psutil.Process(driver.process.pid).children(recursive=True)
        driver.process.send_signal(signal.SIGKILL)
        assert driver.end() == -signal.SIGKILL
    _, alive = psutil.wait_procs(family, timeout=60)  # its Ray goes with it
    for orphan in alive:
        orphan.kill()
    assert losses(root, finished(command, environment())["run_id"]) == whole


# --------------------------------------------------------------------------------------------------- clusters


def test_a_cluster_whose_head_is_killed_ends_the_run_in_a_line_and_a_new_one_goes_on(
    root: Path, whole: Any, head: RayHead, tmp_path: Path
) -> None:
    name = "cluster"
    with Driver(words(root, name, ray=RayConfig(address=head.address)), head.environment) as driver:
        driver.wait_for(MIDWAY)
        head.kill_control_store()
        start_s = time.monotonic()
        status = driver.end()
    assert time.monotonic() - start_s < DEADLINE_S
    assert status == 1, driver.lines[-20:]
    said = "".join(driver.lines)
    assert f"warning: the Ray head at {head.address} does not answer (Connection refused)" in said or (
        "hssl pretrain: error: the Ray cluster is lost (" in said
    )
    assert "Traceback" not in said
    (tmp_path / "again").mkdir()
    with RayHead(tmp_path / "again") as new:
        command = words(root, name, ray=RayConfig(address=new.address))
        assert losses(root, finished(command, new.environment)["run_id"]) == whole
