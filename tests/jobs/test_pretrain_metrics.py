"""A run on two Ray workers at its node's metrics endpoint: what its console says, and nothing after it."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from hssl_dist.config.parts import RayConfig
from hssl_dist.config.pretrain import CheckpointConfig
from hssl_dist.jobs.pretrain_metrics import EXPORTED
from tests.drivers import Driver
from tests.tiny_pretraining import config, job_config, write_store

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900), pytest.mark.usefixtures("ray_cluster")]
STEPS = 20_000
RUN = "watched"
DEADLINE_S = 300.0
LINE = re.compile(
    r"step (?P<step>\d+) of \d+: loss (?P<loss>\S+) \((?P<terms>.*)\), (?P<speed>\S+) samples/s, "
    r"data wait (?P<wait>\d+) %"
)
Samples = dict[tuple[str, ...], float]


def scraped() -> Samples:
    """Our gauges on the node's page: by name, run, and the value of the label beside that, if any."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=60) as answer:
        page = answer.read().decode()
    found: Samples = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if not sample.name.startswith("ray_hssl_pretrain_"):
                continue
            name = sample.name.removeprefix("ray_hssl_pretrain_")
            label = EXPORTED[name].label
            key = (name, sample.labels["run"], *([sample.labels[label]] if label else []))
            assert key not in found
            found[key] = sample.value
    return found


def wait_until_scraped(holds: Callable[[Samples], bool]) -> Samples:
    deadline_s = time.monotonic() + DEADLINE_S
    while not holds(found := scraped()):
        assert time.monotonic() < deadline_s, found
        time.sleep(0.5)
    return found


def of_run(found: Samples, run: str) -> Samples:
    return {key: value for key, value in found.items() if key[1] == run}


def command(folder: Path, name: str, **changes: Any) -> list[str]:
    """A run on two workers of the session's cluster."""
    settings = job_config(
        folder,
        name,
        runner="ray",
        workers=2,
        ray=RayConfig(address=ray.get_runtime_context().gcs_address),
        log_every_steps=10,
        checkpoint=CheckpointConfig(every_steps=50),
        **changes,
    )
    path = folder / f"{name}.json"
    path.write_text(settings.model_dump_json())
    return [sys.executable, "-m", "hssl_dist.pretrain", "--config", str(path)]


def worker() -> psutil.Process:
    """One of those that train."""
    family = psutil.Process().children(recursive=True)
    return next(process for process in family if "RayTrainWorker" in " ".join(process.cmdline()))


def said_of(found: Samples) -> dict[str, object]:
    """The numbers of a console's line, as they are at the endpoint."""
    terms = {key[2]: f"{value:.3f}" for key, value in found.items() if key[0] == "loss_term"}
    return {
        "loss": f"{found['loss', RUN]:.3f}",
        "terms": terms,
        "speed": f"{found['samples_per_second', RUN]:.1f}",
        "wait": f"{100 * found['data_wait_ratio', RUN]:.0f}",
    }


def said_in(line: str) -> dict[str, object]:
    match = LINE.match(line)
    assert match is not None, line
    terms = dict(term.rsplit(" ", 1) for term in match["terms"].split(", "))
    return {"loss": match["loss"], "terms": terms, "speed": match["speed"], "wait": match["wait"]}


def test_the_endpoint_has_what_the_console_says(tmp_path: Path) -> None:
    write_store(str(tmp_path / "store"))
    long = config().encoder.model_copy(update={"steps": STEPS, "learning_rate": 1e-4})
    start_s = time.time()
    with Driver(command(tmp_path, RUN, encoder=long), {**os.environ}) as driver:
        driver.wait_for("step 60 of ")
        wait_until_scraped(lambda found: ("checkpoint_write_seconds", RUN) in found)
        found = of_run(scraped(), RUN)
        for _ in range(3):  # in between a step may have been logged
            step = found["step", RUN]
            driver.wait_for(f"step {step:.0f} of {STEPS + 3}: loss ")
            if said_of(found) == said_in(driver.lines[-1]):
                break
            found = wait_until_scraped(lambda found, step=step: found["step", RUN] > step)
            found = of_run(found, RUN)
        assert said_of(found) == said_in(driver.lines[-1])

        assert {name for name, *_ in found} == EXPORTED.keys() - {"gpu_memory_bytes", "ends_total"}
        assert found["workers", RUN] == 2
        assert found["worker_starts", RUN] == 1
        assert found["planned_steps", RUN] == STEPS + 3
        assert found["learning_rate", RUN] == pytest.approx(1e-4, rel=0.01)
        assert start_s < found["checkpoint_timestamp_seconds", RUN] <= time.time()
        assert start_s < found["last_step_timestamp_seconds", RUN] <= time.time()
        assert 0 < found["checkpoint_write_seconds", RUN] < DEADLINE_S

        worker().kill()
        driver.wait_for("going on from the checkpoint of step ")
        wait_until_scraped(lambda found: found.get(("worker_starts", RUN)) == 2)
        driver.process.send_signal(signal.SIGTERM)
        assert driver.end() == 3
    assert not [line for line in driver.lines if "Prometheus" in line]
    ended = {("ends_total", RUN, "interrupted"): 1.0}
    wait_until_scraped(lambda found: of_run(found, RUN) == ended)


def test_a_loss_that_is_not_finite_is_seen_after_the_run_has_ended(tmp_path: Path) -> None:
    write_store(str(tmp_path / "store"))
    bad = config().encoder.model_copy(update={"learning_rate": 1e30, "warmup_steps": 0, "clip_norm": 1e30})
    with Driver(command(tmp_path, "bad", encoder=bad), {**os.environ}) as driver:
        assert driver.end() == 1
    assert ": not finite: " in "".join(driver.lines)
    wait_until_scraped(lambda found: of_run(found, "bad") == {("ends_total", "bad", "not_finite"): 1.0})
