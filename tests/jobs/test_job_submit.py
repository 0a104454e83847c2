"""`ray job submit` to a cluster behind a token: who is refused, what is uploaded, what is said and when.

How a job ends is told, and the same job again goes on from where it was stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

import hssl_dist
from hssl_dist.config.parts import TrackingConfig
from hssl_dist.config.pretrain import CheckpointConfig, PretrainConfig
from hssl_dist.training.checkpoint import CheckpointStore
from tests.drivers import DEADLINE_S, Driver
from tests.ray_head import COMMAND_TIMEOUT_S, RayHead
from tests.tiny_pretraining import config, job_config, write_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(hssl_dist.__file__).parents[1]
STEPS = 3000
LAST = STEPS + 3
"""The decoder's steps come after."""
MIDWAY = "step 120 of "
PRETRAIN = (sys.executable, "-m", "hssl_dist.pretrain")
STOP_WAIT = {"RAY_JOB_STOP_WAIT_TIME_S": "300"}
WHERE = """
import os
import hssl_dist
import ray
ray.init(log_to_driver=False)
def places():
    import os, hssl_dist
    return os.path.dirname(hssl_dist.__file__), os.getcwd()
assert places() == ray.get(ray.remote(places).remote())
found = [os.path.join(folder, name) for folder, _, names in os.walk(".") for name in names]
print("uploaded", *sorted(found), places()[0].startswith(os.getcwd()))
"""


def settings(root: Path, name: str, runner: str) -> PretrainConfig:
    """With no checkpoint due before its end: what there is after a stop is what the stop has saved."""
    return job_config(
        root,
        name,
        runner=runner,
        encoder=config().encoder.model_copy(update={"steps": STEPS, "learning_rate": 1e-4}),
        log_every_steps=10,
        checkpoint=CheckpointConfig(every_steps=10 * STEPS),
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store and a tracking database that the module's tests share."""
    folder = tmp_path_factory.mktemp("submit")
    write_store(str(folder / "store"))
    return folder


@pytest.fixture(scope="module")
def checkout(root: Path) -> Path:
    """What is submitted from: this repository with configs, and with what should stay where it is."""
    folder = root / "checkout"
    shutil.copytree(ROOT / "hssl_dist", folder / "hssl_dist")
    shutil.copy(ROOT / ".gitignore", folder)
    (folder / "job.json").write_text(settings(root, "job", "ray").model_dump_json())
    (folder / "bad.yaml").write_text("global_batch: 6\nlearning: 1\n")
    for ignored in (
        "hssl/store/volume",
        "build/wheel",
        ".venv/bin/python",
        ".git/config",
        "notes/data.nii.gz",
    ):
        path = folder / ignored
        path.parent.mkdir(parents=True)
        path.write_text("not code")
    return folder


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    with RayHead(tmp_path_factory.mktemp("head")) as running:
        yield running


@contextlib.contextmanager
def submitted(head: RayHead, checkout: Path, name: str, *entrypoint: str) -> Iterator[Driver]:
    """`ray job submit --working-dir`, which shows what the job says until it ends."""
    environment = json.dumps({"env_vars": STOP_WAIT})
    words = head.words(
        "submit",
        *("--submission-id", name, "--working-dir", str(checkout), "--runtime-env-json", environment),
        *("--", *entrypoint),
    )
    with Driver(words, head.environment) as driver:
        yield driver


def refused(head: RayHead, changes: Mapping[str, str]) -> str:
    """What is said to who submits with other settings of the token."""
    inherited = {key: value for key, value in head.environment.items() if "RAY_AUTH" not in key}
    done = subprocess.run(
        head.words("submit", "--submission-id", "stranger", "--no-wait", "--", "true"),
        env={**inherited, "HOME": "/nonexistent", **changes},
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 1
    return done.stdout + done.stderr


def posted(head: RayHead, headers: Mapping[str, str]) -> int:
    """The status that a job brings which is submitted with these headers."""
    job = json.dumps({"entrypoint": "true", "submission_id": "stranger"}).encode()
    request = urllib.request.Request(
        f"{head.job_api}/api/jobs/", job, {"Content-Type": "application/json", **headers}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=COMMAND_TIMEOUT_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def losses(root: Path, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """All terms of the loss by step, as they were tracked."""
    from hssl_dist.tracking.history import metric_history

    history = metric_history(TrackingConfig(uri=f"sqlite:///{root}/mlflow.db"), run_id)
    return {key: values for key, values in history.items() if key.startswith("loss")}


def test_nobody_submits_without_the_token(head: RayHead) -> None:
    """What the command says is Ray's word for a status, which the API is asked for itself."""
    wrong = "f" * 64
    assert "Authentication required: " in refused(head, {"RAY_AUTH_MODE": "disabled"})
    assert "Authentication failed: " in refused(head, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": wrong})
    assert posted(head, {}) == 401
    assert posted(head, {"Authorization": f"Bearer {wrong}"}) == 403
    assert head.said("stranger") == ""


def test_what_is_uploaded_is_what_runs(head: RayHead, checkout: Path) -> None:
    """Driver and workers run a copy of the folder, without what .gitignore and Ray leave out."""
    with submitted(head, checkout, "where", sys.executable, "-c", WHERE) as driver:
        assert driver.end() == 0, driver.lines[-20:]
    (line,) = (line for line in driver.lines if line.startswith("uploaded "))
    *found, is_the_copys = line.removeprefix("uploaded ").split()
    package = {
        f"./hssl_dist/{path.relative_to(ROOT / 'hssl_dist')}" for path in (ROOT / "hssl_dist").rglob("*")
    }
    code = {path for path in package if path.endswith((".py", ".j2", ".css", ".typed"))}
    assert is_the_copys == "True"
    assert {name for name in found if "__pycache__" not in name} == code | {
        "./.gitignore",
        "./job.json",
        "./bad.yaml",
        "./notes/data.nii.gz",
    }


def test_without_a_config_it_says_what_it_needs(head: RayHead, checkout: Path) -> None:
    """The defaults are relative, to what goes with the job."""
    with submitted(head, checkout, "defaults", *PRETRAIN) as driver:
        assert driver.end() == 1
    assert (
        "hssl pretrain: error: store.url, runs and tracking.uri would be in the copy of the working "
        "directory that Ray unpacks on each node and removes after the job; give absolute paths that all "
        "nodes share, or URLs\n"
    ) in driver.lines
    assert "failed with exit code 2" in head.status("defaults")


def test_a_bad_config_fails_the_job_in_one_line(head: RayHead, checkout: Path) -> None:
    with submitted(head, checkout, "bad", *PRETRAIN, "--config", "bad.yaml") as driver:
        assert driver.end() == 1
    said = head.said("bad")
    (line,) = (line for line in said.splitlines() if line.startswith("hssl pretrain: error: "))
    assert "learning" in line
    assert "Traceback" not in said
    status = head.status("bad")
    assert "Job 'bad' failed" in status
    assert "failed with exit code 2" in status
    assert line in status


def entrypoint_process(head: RayHead) -> psutil.Process:
    """The job's own process, below Ray's shell."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            is_job = process.cmdline()[1:4] == ["-m", "hssl_dist.pretrain", "--config"]
            if is_job and Path(process.cwd()).is_relative_to(head.session):
                found.append(process)
    (only,) = found
    return only


def test_a_stopped_job_goes_on_where_it_was_when_it_is_submitted_again(
    root: Path, head: RayHead, checkout: Path
) -> None:
    """Stopped by `ray job stop`, then by a signal to the process, then left alone."""
    job = (*PRETRAIN, "--config", "job.json", "--json")
    store = CheckpointStore(str(root / "runs" / "job" / "checkpoints"))
    with submitted(head, checkout, "first", *job) as driver:
        driver.wait_for(MIDWAY)
        assert "RUNNING" in head.status("first")  # what it says is seen while it runs
        start_s = time.monotonic()
        assert "stopped" in head.stop("first")
        assert time.monotonic() - start_s < 300
        assert driver.end() == 0
    assert "Job 'first' was stopped" in "".join(driver.lines[-3:])
    assert "was stopped" in head.status("first")
    said = head.said("first")
    assert "asked to stop: saving a checkpoint\n" in said
    assert "Traceback" not in said
    summary = json.loads(said.splitlines()[-1])
    assert summary["status"] == "interrupted"
    assert summary["reason"] == "a checkpoint is saved; run it again to go on"
    first = summary["steps"]
    assert store.steps() == [first]
    assert 120 <= first < STEPS

    with submitted(head, checkout, "second", *job) as driver:
        driver.wait_for(f"going on from the checkpoint of step {first}")
        driver.wait_for("step ")
        entrypoint_process(head).send_signal(signal.SIGTERM)
        assert driver.end() == 1
    assert "failed with exit code 3" in head.status("second")
    second = store.latest()
    assert second is not None
    assert first < second < STEPS

    with submitted(head, checkout, "third", *job) as driver:
        driver.wait_for(f"going on from the checkpoint of step {second}")
        assert driver.end() == 0
    assert "Job 'third' succeeded" in head.status("third")
    done = json.loads(head.said("third").splitlines()[-1])
    assert done["status"] == "done"
    assert losses(root, done["run_id"]) == alone(root)


def alone(root: Path) -> dict[str, list[tuple[int, float]]]:
    """The losses of a run that was left alone, without Ray, in a process of its own."""
    path = root / "alone.json"
    path.write_text(settings(root, "alone", "inline").model_dump_json())
    done = subprocess.run(
        [*PRETRAIN, "--config", str(path), "--json"],
        env={key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "HSSL_"))},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = losses(root, json.loads(done.stdout)["run_id"])
    assert [step for step, _ in found["loss"]] == [*range(10, STEPS + 1, 10), LAST]
    return found
