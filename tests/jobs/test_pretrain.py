"""The pretraining job on a real store, with real tracking: in this process, stopped, resumed, and on Ray."""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from hssl_dist import files
from hssl_dist.config.parts import RayConfig, StoreConfig, TrackingConfig
from hssl_dist.config.pretrain import PretrainConfig
from hssl_dist.console import Console
from hssl_dist.errors import ConfigError, MissingError, NonFiniteError
from hssl_dist.jobs import pretrain
from hssl_dist.networks.weights import load_model
from hssl_dist.records import Outcome
from hssl_dist.tracking import fetch_model
from hssl_dist.tracking.history import metric_history
from hssl_dist.training.checkpoint import CheckpointStore
from tests.drivers import Driver
from tests.tiny_pretraining import config, job_config, write_store

STEPS = 7
# Lines differ from run to run only in how fast it went.
READING = ("cache_hit_share", "bytes_fetched_per_byte_used", "requests_per_region")
SPEED = ("samples_per_s", "data_wait_share", *READING)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store and a tracking database that the module's tests share."""
    folder = tmp_path_factory.mktemp("pretrain")
    write_store(str(folder / "store"))
    return folder


def run(config: PretrainConfig) -> tuple[Outcome, str]:
    stream = io.StringIO()
    return pretrain.run(config, Console(stream)), stream.getvalue()


def weights_hash(root: Path, name: str) -> str:
    return hashlib.sha256((root / "runs" / name / "model" / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def whole(root: Path) -> tuple[Outcome, str]:
    """A run from start to end in this process."""
    return run(job_config(root, "whole"))


def test_a_run_is_trained_tracked_and_registered(root: Path, whole: tuple[Outcome, str]) -> None:
    outcome, said = whole
    assert outcome.status == "done"
    summary = outcome.summary
    assert summary["steps"] == STEPS
    assert summary["already_done"] is False
    assert {"loss", "loss_image", "loss_dense", "task_accuracy"} <= summary["metrics"].keys()
    assert f"step {STEPS} of {STEPS}: loss {summary['metrics']['loss']:.3f} (dense " in said
    assert "step 4 of 7: checkpoint saved" in said

    tracking = TrackingConfig(uri=f"sqlite:///{root}/mlflow.db")
    fetched = fetch_model(tracking, "models:/tiny-unet@latest")
    assert (fetched.run_id, fetched.uri) == (summary["run_id"], summary["model"])
    card, state = load_model(fetched.folder)
    assert card.kind == "pretrained"
    assert (card.tasks, card.groups) == (("heart", "liver", "spleen"), ("abdomen-ct", "heart-mr"))
    assert card.lineage.parent_run == summary["run_id"]
    assert card.lineage.manifests.keys() == {"heart", "liver", "spleen"}
    assert card.metrics == summary["metrics"]
    assert any(name.startswith("decoder.") for name in state)
    assert fetch_model(tracking, summary["folder"]).folder == root / "runs" / "whole" / "model"


def test_the_tracked_run_has_parameters_metrics_and_figures(root: Path, whole: tuple[Outcome, str]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow.db")
    tracked = client.get_run(whole[0].summary["run_id"])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["sampling.patch_size"] == "[4,8,8]"
    assert tracked.data.params["encoder.steps"] == "4"
    history = client.get_metric_history(tracked.info.run_id, "loss")
    assert [point.step for point in history] == list(range(1, STEPS + 1))
    artifacts = {item.path for item in client.list_artifacts(tracked.info.run_id)}
    assert artifacts >= {"config.json", "figures"}
    figures = {item.path for item in client.list_artifacts(tracked.info.run_id, "figures")}
    assert figures == {"figures/loss.png", "figures/accuracy.png"}


def test_a_finished_run_is_not_run_again(root: Path, whole: tuple[Outcome, str]) -> None:
    outcome, said = run(job_config(root, "whole", threads_per_worker=2))
    assert outcome.status == "done"
    assert outcome.summary == {**whole[0].summary, "already_done": True}
    assert outcome.lines == (f"run 'whole' is done already: {whole[0].summary['model']}",)
    assert said == ""
    with pytest.raises(ConfigError, match="run 'whole' was started with seed = 0, it is now 1; give another"):
        run(job_config(root, "whole", seed=1))


def test_a_finished_run_is_registered_anew_where_the_registry_was_lost(
    root: Path, whole: tuple[Outcome, str], tmp_path: Path
) -> None:
    shutil.copytree(root / "runs" / "whole", tmp_path / "runs" / "whole")
    lost = TrackingConfig(uri=f"sqlite:///{tmp_path}/new.db")
    settings = job_config(root, "whole", runs=str(tmp_path / "runs"), tracking=lost)
    outcome, _ = run(settings)
    assert outcome.lines == ("run 'whole' is done already: models:/tiny-unet/1, registered anew",)
    fetched = fetch_model(lost, "models:/tiny-unet@latest")
    assert fetched.run_id == outcome.summary["run_id"] != whole[0].summary["run_id"]
    assert (fetched.folder / "model.safetensors").read_bytes() == (
        root / "runs/whole/model/model.safetensors"
    ).read_bytes()
    losses = metric_history(lost, outcome.summary["run_id"])["loss"]
    assert [step for step, _ in losses] == list(range(1, STEPS + 1))
    assert run(settings)[0].lines == ("run 'whole' is done already: models:/tiny-unet/1",)


def test_a_store_without_datasets_is_one_clear_error(root: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=f"no dataset in the store {tmp_path}"):
        run(job_config(root, "nowhere", store=StoreConfig(url=str(tmp_path))))


def test_runs_may_live_on_an_object_store(root: Path, whole: tuple[Outcome, str]) -> None:
    outcome, _ = run(job_config(root, "whole", runs="memory://pretrain-runs"))
    assert outcome.summary["folder"] == "memory://pretrain-runs/whole/model"
    weights = files.read("memory://pretrain-runs/whole/model/model.safetensors")
    assert hashlib.sha256(weights).hexdigest() == weights_hash(root, "whole")


# ------------------------------------------------------------------------------------------- real processes


def command(root: Path, name: str, **changes: Any) -> list[str]:
    path = root / f"{name}.json"
    path.write_text(job_config(root, name, **changes).model_dump_json())
    return [sys.executable, "-m", "hssl_dist.pretrain", "--config", str(path), "--json"]


def start(words: list[str]) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def stop_after_two_steps(words: list[str]) -> tuple[int, str]:
    """Exit status and standard error of a run that gets SIGTERM after its second step."""
    process = start(words)
    lines = []
    assert process.stderr is not None
    try:
        for line in process.stderr:
            lines.append(line)
            if line.startswith("step 2 of ") and ": loss " in line:
                process.send_signal(signal.SIGTERM)
        return process.wait(timeout=60), "".join(lines)
    finally:
        process.kill()
        process.communicate()


def test_sigterm_saves_a_checkpoint_and_a_rerun_ends_the_run(root: Path, whole: tuple[Outcome, str]) -> None:
    status, said = stop_after_two_steps(command(root, "stopped"))
    assert status == 3, said
    assert "Traceback" not in said
    step = CheckpointStore(str(root / "runs" / "stopped" / "checkpoints")).latest()
    assert step is not None
    assert 2 <= step < STEPS
    outcome, said = run(job_config(root, "stopped"))
    assert outcome.status == "done"
    assert said.startswith(f"going on from the checkpoint of step {step}\nstep {step + 1} of 7: loss ")
    assert weights_hash(root, "stopped") == weights_hash(root, "whole")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow.db")
    history = client.get_metric_history(outcome.summary["run_id"], "loss")
    assert [point.step for point in history] == list(range(1, STEPS + 1))


def test_torchrun_ranks_make_the_same_network(root: Path, whole: tuple[Outcome, str]) -> None:
    words = command(root, "ranks")
    process = start(
        [words[0], "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", *words[1:]]
    )
    _, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    card, _ = load_model(root / "runs" / "ranks" / "model")
    for key, value in whole[0].summary["metrics"].items():
        if key not in SPEED:
            assert card.metrics[key] == pytest.approx(value, rel=1e-2), key


# ----------------------------------------------------------------------------------------------------- on Ray


def on_ray(test: Any) -> Any:
    """Uses the session's cluster. Ray Train makes a Ray Data context, which sets what it deprecates."""
    ray_may_warn = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")
    return pytest.mark.usefixtures("ray_cluster")(ray_may_warn(test))


@on_ray
def test_two_ray_workers_make_the_same_network(root: Path, whole: tuple[Outcome, str]) -> None:
    outcome, said = run(job_config(root, "on-ray", runner="ray", workers=2))
    assert outcome.status == "done"
    assert outcome.summary["steps"] == STEPS
    assert f"step {STEPS} of {STEPS}: loss" in said
    history = metric_history(TrackingConfig(uri=f"sqlite:///{root}/mlflow.db"), outcome.summary["run_id"])
    assert [step for step, _ in history["loss"]] == list(range(1, STEPS + 1))
    for key, value in whole[0].summary["metrics"].items():
        if key not in SPEED:
            assert outcome.summary["metrics"][key] == pytest.approx(value, rel=1e-2), key


@on_ray
def test_an_error_that_a_restart_cannot_help_comes_out_of_ray_as_itself(root: Path) -> None:
    bad = config().encoder.model_copy(update={"learning_rate": 1e30, "warmup_steps": 0, "clip_norm": 1e30})
    with pytest.raises(NonFiniteError, match=r"^step \d: not finite: "):
        run(job_config(root, "bad", runner="ray", workers=2, encoder=bad))


@on_ray
def test_sigterm_saves_a_checkpoint_on_ray_and_the_run_goes_on_without_it(root: Path) -> None:
    """Of a run too long to end by itself before the workers hear of the signal."""
    long = config().encoder.model_copy(update={"steps": 200})
    address = ray.get_runtime_context().gcs_address
    there = {"runner": "ray", "workers": 2, "ray": RayConfig(address=address), "encoder": long}
    status, said = stop_after_two_steps(command(root, "stopped-on-ray", **there))
    assert status == 3, said
    assert "Traceback" not in said
    assert "asked to stop: saving a checkpoint" in said
    step = CheckpointStore(str(root / "runs" / "stopped-on-ray" / "checkpoints")).latest()
    assert step is not None
    assert 2 <= step < 200
    outcome, said = run(job_config(root, "stopped-on-ray", encoder=long))
    assert outcome.status == "done"
    assert said.startswith(f"going on from the checkpoint of step {step}\nstep {step + 1} of 2")


def test_a_stop_while_the_workers_wait_for_room_ends_the_run(root: Path) -> None:
    """On a Ray of its own that has one CPU for two workers."""
    words = command(root, "waits", runner="ray", workers=2, ray=RayConfig(num_cpus=1))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    with Driver(words, environment) as driver:
        driver.wait_for(
            "warning: workers 2 x threads_per_worker 1 need 2 CPUs, the cluster has 1: the run wai"
        )
        driver.process.send_signal(signal.SIGTERM)
        assert driver.end() == 3, driver.lines
    summary = json.loads(driver.lines[-1])
    assert (summary["status"], summary["steps"]) == ("interrupted", 0)
    assert summary["reason"] == "no worker was running; run it again to go on"
    assert not any("Traceback" in line for line in driver.lines)
