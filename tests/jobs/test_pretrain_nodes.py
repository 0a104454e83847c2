"""Pretraining on several nodes of a Ray cluster: one is lost, another comes, and the run ends right."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from hssl_dist.config.parts import RayConfig
from hssl_dist.config.pretrain import CheckpointConfig
from hssl_dist.networks.weights import ModelCard, load_model
from hssl_dist.training.checkpoint import CheckpointStore
from tests.drivers import DEADLINE_S, Driver
from tests.tiny_pretraining import config, job_config, write_store

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(900),
    # Ray's own cluster of several nodes leaves a socket open.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
STEPS = 3000
SPEED = ("samples_per_s", "data_wait_share")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head and a second node, each with room for one worker."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        yield made
    finally:
        made.shutdown()


def command(folder: Path, name: str, **changes: Any) -> list[str]:
    settings = job_config(
        folder,
        name,
        # Long enough to lose a node and gain one before it ends, at a rate that lets roundings stay small.
        encoder=config().encoder.model_copy(update={"steps": STEPS, "learning_rate": 1e-4}),
        log_every_steps=10,
        checkpoint=CheckpointConfig(every_steps=20),
        **changes,
    )
    path = folder / f"{name}.json"
    path.write_text(settings.model_dump_json())
    return [sys.executable, "-m", "hssl_dist.pretrain", "--config", str(path)]


@contextmanager
def worker_node(cluster: Cluster, drain_s: int) -> Iterator[subprocess.Popen[bytes]]:
    """A second node as a pod has it: `ray start --block`, which drains it for so many seconds at SIGTERM."""
    ray = str(Path(sys.executable).with_name("ray"))
    words = [ray, "start", "--block", "--address", cluster.address, "--num-cpus", "1", "--num-gpus", "0"]
    environment = {**os.environ, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(drain_s)}
    process = subprocess.Popen(
        [*words, "--dashboard-agent-listen-port", "0"], stdout=subprocess.DEVNULL, env=environment
    )
    try:
        deadline_s = time.monotonic() + DEADLINE_S
        while len(cluster.global_state.node_table()) < 2:
            assert time.monotonic() < deadline_s, "the node does not come"
            time.sleep(0.2)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(drain_s + 60)
        finally:
            process.kill()


def drain(cluster: Cluster, node_id: str, seconds: int) -> None:
    """Tell Ray that a node will be reclaimed in so many seconds, as an autoscaler does."""
    subprocess.run(
        [
            *(str(Path(sys.executable).with_name("ray")), "drain-node", "--address", cluster.address),
            *("--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"),
            *("--reason-message", "reclaimed", "--deadline-remaining-seconds", str(seconds)),
        ],
        check=True,
        timeout=DEADLINE_S,
    )


def card(folder: Path, name: str) -> ModelCard:
    return load_model(folder / "runs" / name / "model")[0]


def test_a_lost_node_shrinks_the_run_and_a_new_one_grows_it(cluster: Cluster, tmp_path: Path) -> None:
    write_store(str(tmp_path / "store"))
    subprocess.run(command(tmp_path, "whole"), check=True, timeout=DEADLINE_S)

    second = cluster.add_node(num_cpus=1)
    there = {"runner": "ray", "ray": RayConfig(address=cluster.address)}
    words = command(tmp_path, "elastic", workers=[1, 2], resize_every_s=2.0, max_failures=1, **there)
    with Driver(words) as run:
        run.wait_for("training on 2 workers")
        run.wait_for("step 40 of ")
        cluster.remove_node(second, allow_graceful=False)
        run.wait_for("training on 1 worker")
        run.wait_for("step 100 of ")
        cluster.add_node(num_cpus=1)
        run.wait_for("training on 2 workers")
        assert run.end() == 0, run.lines[-20:]

    assert any(line.startswith("going on from the checkpoint of step ") for line in run.lines)
    # Thousands of steps away, roundings have grown; tests/distributed/test_pretraining.py compares closely.
    for key, value in card(tmp_path, "whole").metrics.items():
        if key not in SPEED:
            assert card(tmp_path, "elastic").metrics[key] == pytest.approx(value, rel=0.1), key


def test_a_stop_while_it_waits_for_another_node_ends_the_run(cluster: Cluster, tmp_path: Path) -> None:
    write_store(str(tmp_path / "store"))
    second = cluster.add_node(num_cpus=1)
    there = {"runner": "ray", "ray": RayConfig(address=cluster.address)}
    with Driver(command(tmp_path, "waits", workers=2, **there)) as run:
        run.wait_for("training on 2 workers")
        run.wait_for("step 40 of ")
        cluster.remove_node(second, allow_graceful=False)
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 3, run.lines[-20:]
    checkpoints = CheckpointStore(str(tmp_path / "runs/waits/checkpoints"))
    step = checkpoints.latest()
    assert step is not None
    checkpoints.load(step)
    assert f"run 'waits' is interrupted after step {step}; run it again to go on\n" in run.lines
    assert not any("Traceback" in line for line in run.lines)


def test_a_node_that_will_be_taken_away_is_left_with_a_checkpoint(cluster: Cluster, tmp_path: Path) -> None:
    write_store(str(tmp_path / "store"))
    second = cluster.add_node(num_cpus=1)
    there = {"runner": "ray", "ray": RayConfig(address=cluster.address)}
    words = command(tmp_path, "drained", workers=[1, 2], max_failures=0, **there)
    with Driver(words) as run:
        run.wait_for("training on 2 workers")
        run.wait_for("step 40 of ")
        drain(cluster, second.node_id, 15)
        run.wait_for("the node of rank ")
        assert run.lines[-1].endswith(" is about to be taken away: saving a checkpoint\n")
        run.wait_for("step ")
        time.sleep(15)
        cluster.remove_node(second, allow_graceful=False)
        run.wait_for("training on 1 worker")
        assert run.end() == 0, run.lines[-20:]


def test_a_pod_that_is_to_go_is_left_with_a_checkpoint(cluster: Cluster, tmp_path: Path) -> None:
    """Kubernetes sends SIGTERM to `ray start`, which is what cluster/kuberay relies on."""
    write_store(str(tmp_path / "store"))
    there = {"runner": "ray", "ray": RayConfig(address=cluster.address)}
    words = command(tmp_path, "pod", workers=[1, 2], resize_every_s=2.0, max_failures=0, **there)
    with worker_node(cluster, drain_s=20) as node, Driver(words) as run:
        run.wait_for("training on 2 workers")
        run.wait_for("step 40 of ")
        node.terminate()
        run.wait_for("the node of rank ")
        assert run.lines[-1].endswith(" is about to be taken away: saving a checkpoint\n")
        run.wait_for("training on 1 worker")
        assert run.end() == 0, run.lines[-20:]
