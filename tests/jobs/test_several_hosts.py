"""Hosts with a network between them: they preprocess and pretrain together, and one is cut off midway."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hssl_dist.config.parts import RayConfig, StoreConfig, TrackingConfig
from hssl_dist.config.preprocess import PreprocessConfig
from hssl_dist.config.pretrain import CheckpointConfig
from hssl_dist.imaging import write_nifti
from hssl_dist.synthetic import write_task
from hssl_dist.tracking.history import metric_history
from tests.drivers import DEADLINE_S, Driver
from tests.hosts import Network, inherited, missing
from tests.s3.server import ACCESS_KEY, REGION
from tests.tiny_pretraining import config, job_config

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]
STEPS, LAST = 300, 303
"""The encoder's; the decoder's come after."""
TASKS = ("liver", "heart")
WORKERS = ("one", "two")
RAY = ("ray", "start", "--block")
STARTED = "Ray runtime started"
CLOSE = 1e-4
"""Of two workers and one, which add up the same numbers in another order: rounding, 4e-7 when measured."""
MAKE_BUCKET = """
from botocore.session import Session
Session().create_client("s3").create_bucket(Bucket="hssl")
"""


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """The head of a Ray cluster, two nodes, and storage, each a host of its own."""
    if (reason := missing()) is not None:
        pytest.skip(reason)
    with Network(tmp_path, ("head", *WORKERS, "storage")) as made:
        yield made


@pytest.fixture
def environment(network: Network, tmp_path: Path) -> dict[str, str]:
    """What every process on them needs, with the storage running."""
    key = tmp_path / "key"
    key.write_text(secrets.token_hex(16))
    where = ("--host", "0.0.0.0", "--port", "8333", "--secret", str(key))
    server = (sys.executable, "-m", "tests.s3", str(tmp_path / "s3"))
    network.serve("storage", *server, *where, until="serving", environment=inherited())
    return {
        **inherited(),
        "AWS_ENDPOINT_URL": "http://storage:8333",
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": key.read_text(),
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TMPDIR": str(network.local),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "300",
    }


@pytest.fixture
def nodes(network: Network, environment: dict[str, str]) -> dict[str, subprocess.Popen[bytes]]:
    """`ray start` on each host of the cluster, as docs/deploy.md has it."""
    head = (*RAY, "--head", "--num-cpus", "0", "--num-gpus", "0", "--port", "6379")
    memory = ("--object-store-memory", str(128 << 20))
    started = {"head": network.serve("head", *head, *memory, until=STARTED, environment=environment)}
    for name in WORKERS:
        words = (*RAY, "--address", "head:6379", "--num-cpus", "1", "--num-gpus", "0", *memory)
        started[name] = network.serve(name, *words, until=STARTED, environment=environment)
    return started


def job(network: Network, verb: str, path: Path, *flags: str) -> list[str]:
    """A job whose driver is on the head."""
    return network.words("head", sys.executable, "-m", f"hssl_dist.{verb}", "--config", str(path), *flags)


def preprocess_words(network: Network, folder: Path) -> list[str]:
    """A job that stores phantoms of two challenges, from a folder that all hosts share."""
    found = [write_task(folder / "scans", task, 1, write_nifti, patients=4) for task in TASKS]
    settings = PreprocessConfig(
        store=StoreConfig(url="s3://hssl/store"),
        source_root=str(folder / "scans"),
        datasets=tuple(found),
        ray=RayConfig(address="head:6379"),
    )
    path = folder / "preprocess.json"
    path.write_text(settings.model_dump_json())
    return job(network, "preprocess", path)


def pretrain_words(network: Network, folder: Path, name: str) -> list[str]:
    """A run on as many workers as there is room for."""
    settings = job_config(
        folder,
        name,
        store=StoreConfig(url="s3://hssl/store"),
        runs="s3://hssl/runs",
        runner="ray",
        ray=RayConfig(address="head:6379"),
        workers=[1, 2],
        max_failures=1,
        encoder=config().encoder.model_copy(update={"steps": STEPS, "learning_rate": 1e-4}),
        log_every_steps=10,
        checkpoint=CheckpointConfig(every_steps=20),
    )
    path = folder / f"{name}.json"
    path.write_text(settings.model_dump_json())
    return job(network, "pretrain", path, "--json")


def losses(folder: Path, lines: Sequence[str]) -> dict[int, dict[str, float]]:
    """All terms of the loss by step, as they were tracked."""
    run_id = json.loads(lines[-1])["run_id"]
    history = metric_history(TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db"), run_id)
    found: dict[int, dict[str, float]] = {}
    for key, values in history.items():
        if key.startswith("loss"):
            for step, value in values:
                found.setdefault(step, {})[key] = value
    return found


def has_trained(network: Network, host: str) -> bool:
    """Whether there are volumes in its cache, which is in its own home."""
    return any(path.is_file() for path in (network.home(host) / ".cache/hssl").rglob("*"))


def test_a_host_that_is_cut_off_is_trained_on_without(
    network: Network, environment: dict[str, str], nodes: dict[str, subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    make_bucket = network.words("head", sys.executable, "-c", MAKE_BUCKET)
    subprocess.run(make_bucket, env=environment, check=True, timeout=DEADLINE_S)
    preprocess = preprocess_words(network, tmp_path)
    with Driver(preprocess, environment) as stored:
        assert stored.end() == 0, stored.lines

    with Driver(pretrain_words(network, tmp_path, "whole"), environment) as whole:
        whole.wait_for("training on 2 workers")
        assert whole.end() == 0, whole.lines[-20:]
    assert all(has_trained(network, name) for name in WORKERS)

    with Driver(pretrain_words(network, tmp_path, "cut"), environment) as cut:
        cut.wait_for("training on 2 workers")
        cut.wait_for("step 100 of ")
        network.unplug("two")
        cut.wait_for("training on 1 worker")
        cut.wait_for("going on from the checkpoint of step ")
        left = int(cut.lines[-1].split()[-1])
        assert cut.end() == 0, cut.lines[-20:]
    assert 20 <= left < STEPS
    assert sum(line.startswith("training on ") for line in cut.lines) == 2

    expected, found = losses(tmp_path, whole.lines), losses(tmp_path, cut.lines)
    assert found.keys() == expected.keys() == {*range(10, STEPS + 1, 10), LAST}
    for step, terms in expected.items():
        assert found[step] == (terms if step <= left else pytest.approx(terms, rel=CLOSE)), step

    # Back in the network it hears that it was given up, and ends: whoever runs it starts it again.
    network.plug("two")
    assert nodes["two"].wait(DEADLINE_S) != 0
    with Driver(preprocess, environment) as again:
        assert again.end() == 0, again.lines
    counts = re.findall(r"(\d+) cases \((\d+) written, (\d+) unchanged\)", "".join(again.lines))
    assert counts == [("4", "0", "4"), ("8", "0", "8")]
