"""Fine-tuning on Ray, with workers that are lost or stopped, and with too little memory."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from hssl_dist import files
from hssl_dist.errors import Interrupted, MissingError, OutOfMemoryError, WorkerError
from hssl_dist.jobs.stopping import stop_requests
from hssl_dist.networks.weights import load_model, save_model
from hssl_dist.training.checkpoint import CheckpointStore
from tests.drivers import Driver
from tests.tiny_finetuning import TRAINING, Place

STEPS, EVERY = 600, 100


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("workers"))


@pytest.mark.usefixtures("ray_cluster")
def test_on_ray_it_gives_the_same_weights_and_the_same_errors(place: Place) -> None:
    here = place.finetune("here", register_as="on-ray").summary
    there = place.finetune("there", register_as="on-ray", runner="ray").summary
    assert there["version"] == here["version"] + 1
    assert files.read(files.join(there["path"], "model.safetensors")) == files.read(
        files.join(here["path"], "model.safetensors")
    )
    with pytest.raises(MissingError) as caught:
        place.finetune("there", dataset="none", runner="ray")
    assert str(caught.value).endswith("preprocess the dataset 'none' first")


@pytest.mark.usefixtures("ray_cluster")
def test_on_ray_more_threads_than_there_are_cpus_do_not_wait_for_ever(place: Place) -> None:
    cpus = int(ray.cluster_resources()["CPU"])
    outcome = place.finetune("threads", register_as="threads", runner="ray", threads=cpus + 1)
    assert outcome.status == "done"


@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_that_is_killed_is_told_and_the_run_goes_on(place: Place) -> None:
    changes: dict[str, Any] = {
        "register_as": "lost",
        "training": {**TRAINING, "steps": 200, "validate_every": 100},
        "checkpoint": {"every_steps": 5},
    }
    checkpoints = CheckpointStore(str(place.folder / "runs/lost/checkpoints"))
    killer = threading.Thread(target=kill_worker_after, args=(checkpoints,))
    killer.start()
    with pytest.raises(WorkerError) as caught:
        place.finetune("lost", runner="ray", **changes)
    killer.join()
    assert str(caught.value).startswith("a Ray worker was lost (")
    assert str(caught.value).endswith("its last checkpoint is kept: run it again to go on")
    assert 5 <= (checkpoints.latest() or 0) < 200
    assert place.finetune("lost", **changes).summary["steps"] == 200


def kill_worker_after(checkpoints: CheckpointStore) -> None:
    """Kill the worker of this process's cluster that fine-tunes, once it has saved a checkpoint."""
    give_up_s = time.monotonic() + 120.0
    while checkpoints.latest() is None and time.monotonic() < give_up_s:
        time.sleep(0.01)
    for process in psutil.Process().children(recursive=True):
        if "_run_task" in " ".join(process.cmdline()):
            process.kill()


@pytest.mark.usefixtures("ray_cluster")
def test_a_stop_while_it_waits_for_a_cpu_ends_it(place: Place) -> None:
    holders = [hold.remote() for _ in range(int(ray.cluster_resources()["CPU"]))]
    over = threading.Event()
    teller = threading.Thread(target=ask_until, args=(over,))
    try:
        with stop_requests():  # or a signal that comes too early would end these tests
            teller.start()
            with pytest.raises(Interrupted, match=r"^no worker was running; run it again to go on$"):
                place.finetune("waits", register_as="waits", runner="ray")
    finally:
        over.set()
        teller.join()
        for holder in holders:
            ray.cancel(holder, force=True)
    assert not (place.folder / "runs/waits").exists()


@ray.remote(num_cpus=1, max_retries=0)
def hold() -> None:
    """Keeps a CPU."""
    time.sleep(600)


def ask_until(over: threading.Event) -> None:
    """SIGTERM to this process, as often as a scheduler that is in a hurry."""
    while not over.wait(1.0):
        os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_on_ray_saves_where_it_is_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """With a checkpoint due so seldom that the newest after the stop is the one that the stop has saved."""
    place = Place(tmp_path)
    changes: dict[str, Any] = {
        "register_as": "stopped",
        "model": "scratch",
        "training": {**TRAINING, "steps": STEPS, "validate_every": STEPS // 2},
        "checkpoint": {"every_steps": EVERY},
    }
    whole = place.finetune("whole", **changes).summary
    config = place.config("stopped", runner="ray", ray={"num_cpus": 1}, **changes)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    command = [
        sys.executable,
        "-m",
        "hssl_dist.finetune",
        "--config",
        str(tmp_path / "config.json"),
        "--json",
    ]
    checkpoints = CheckpointStore(str(tmp_path / "runs/stopped/checkpoints"))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "HSSL_"))}
    with Driver(command, environment) as driver:
        driver.wait_for("blobs: ")  # the task's own line
        give_up_s = time.monotonic() + 120.0
        while checkpoints.latest() is None and time.monotonic() < give_up_s:
            time.sleep(0.01)
        driver.process.send_signal(signal.SIGTERM)
        assert driver.end() == 3, driver.lines
    step = checkpoints.latest()
    assert step is not None
    assert EVERY <= step < STEPS
    said = [line.strip() for line in driver.lines]
    assert "asked to stop: saving a checkpoint" in said
    assert f"hssl finetune: interrupted: stopped after step {step}; run it again to go on" in said
    assert json.loads(said[-1])["status"] == "interrupted"
    assert not any("Traceback" in line for line in said)

    with Driver(command, environment) as driver:
        driver.wait_for(f"going on from the checkpoint of step {step}")
        assert driver.end() == 0, driver.lines
    summary = json.loads(driver.lines[-1])
    assert (summary["best_step"], summary["val_dice"]) == (whole["best_step"], whole["val_dice"])
    assert (tmp_path / "runs/stopped/model/model.safetensors").read_bytes() == (
        tmp_path / "runs/whole/model/model.safetensors"
    ).read_bytes()


def test_memory_that_does_not_suffice_is_one_line_with_advice(place: Place, tmp_path: Path) -> None:
    """Patches of more bytes than any machine can address."""
    huge = (2**15, 2**16, 2**16)
    with pytest.raises(OutOfMemoryError) as caught:
        place.finetune("huge", register_as="huge", model="scratch", training={**TRAINING, "patch_size": huge})
    assert str(caught.value) == (
        "not enough memory for training; lower training.batch_size to 1 (it is 2) or training.patch_size (it "
        "is 32768 x 65536 x 65536), or use a larger machine"
    )
    card, state = load_model(Path(place.finetune("small", register_as="huge").summary["path"]))
    save_model(tmp_path, state, card.model_copy(update={"patch_size": huge}))
    with pytest.raises(OutOfMemoryError) as caught:
        place.evaluate(str(tmp_path))
    assert str(caught.value).startswith("not enough memory for predicting case 'p")
    assert str(caught.value).endswith(
        "'; fine-tune with a smaller training.patch_size, or use a larger machine"
    )
