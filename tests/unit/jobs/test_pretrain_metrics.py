"""What gauges of a pretraining are set to, by what it tells; that training never hears of a fault in them."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hssl_dist.errors import Interrupted, NonFiniteError, TrainingError
from hssl_dist.jobs.pretrain_metrics import EXPORTED, RunMetrics, end_counted, memory_exported

METRICS = {
    "loss": 3.5,
    "loss_image": 2.0,
    "loss_task": 1.0,
    "gradient_norm": 7.0,
    "learning_rate": 1e-3,
    "samples_per_s": 51.2,
    "data_wait_share": 0.25,
    "embedding_std": 0.9,
    "effective_rank": 12.0,
    "image_over_chance": 0.7,
    "task_accuracy": 0.5,
}


class Gauges:
    """Stands for Ray's: keeps what gauges are made and what they are set to, by name and tags."""

    def __init__(self) -> None:
        self.tag_keys: dict[str, tuple[str, ...]] = {}
        self.values: dict[tuple[str, ...], float] = {}
        self.calls = 0
        self.fault: Exception | None = None

    def make(self, name: str, description: str, tag_keys: tuple[str, ...]) -> "Gauge":
        assert description
        assert name not in self.tag_keys
        self.tag_keys[name] = tag_keys
        return Gauge(self, name)


class Gauge:
    def __init__(self, gauges: Gauges, name: str) -> None:
        self.gauges, self.name = gauges, name

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.gauges.calls += 1
        if self.gauges.fault is not None:
            raise self.gauges.fault
        assert tuple(tags) == self.gauges.tag_keys[self.name]
        self.gauges.values[(self.name.removeprefix("hssl_pretrain_"), *tags.values())] = value


def metrics_of(gauges: Gauges, warn: Callable[[str], None] = print, **changes: Any) -> RunMetrics:
    options = {"make": gauges.make, "now": lambda: 1000.0, "refresh_s": 60.0, **changes}
    return RunMetrics("run", 40, warn, **options)


def test_a_logged_step_is_exported_with_its_terms() -> None:
    gauges = Gauges()
    metrics_of(gauges).logged(10, METRICS)
    assert gauges.values == {
        ("planned_steps", "run"): 40.0,
        ("last_step_timestamp_seconds", "run"): 1000.0,
        ("step", "run"): 10.0,
        ("loss", "run"): 3.5,
        ("loss_term", "run", "image"): 2.0,
        ("loss_term", "run", "task"): 1.0,
        ("gradient_norm", "run"): 7.0,
        ("learning_rate", "run"): 1e-3,
        ("samples_per_second", "run"): 51.2,
        ("data_wait_ratio", "run"): 0.25,
        ("embedding_std", "run"): 0.9,
        ("effective_rank", "run"): 12.0,
        ("image_over_chance", "run"): 0.7,
    }
    assert gauges.tag_keys["hssl_pretrain_loss_term"] == ("run", "term")


def test_what_the_newest_step_does_not_have_is_set_no_more() -> None:
    gauges = Gauges()
    metrics = metrics_of(gauges)
    metrics.logged(10, METRICS)
    gauges.values.clear()
    metrics.logged(20, {"loss": 1.5, "loss_dense": 1.5})
    assert gauges.values.keys() == {
        ("planned_steps", "run"),
        ("last_step_timestamp_seconds", "run"),
        ("step", "run"),
        ("loss", "run"),
        ("loss_term", "run", "dense"),
    }


def test_a_checkpoint_is_as_old_as_its_state() -> None:
    gauges, clock = Gauges(), [1000.0]
    metrics = metrics_of(gauges, now=lambda: clock[0])
    clock[0] = 1010.0
    metrics.started(2)
    age, wrote = ("checkpoint_timestamp_seconds", "run"), ("checkpoint_write_seconds", "run")
    assert gauges.values[age] == 1010.0
    assert wrote not in gauges.values
    clock[0] = 1100.0
    metrics.saved(2.5)
    assert (gauges.values[age], gauges.values[wrote]) == (1097.5, 2.5)
    clock[0] = 1200.0
    metrics.started(1)
    assert gauges.values[age] == 1097.5


def test_starts_are_counted() -> None:
    gauges = Gauges()
    metrics = metrics_of(gauges)
    for workers in (2, 2, 1):
        metrics.started(workers)
    assert gauges.values[("workers", "run")] == 1.0
    assert gauges.values[("worker_starts", "run")] == 3.0


def test_what_holds_is_set_again_and_again() -> None:
    gauges = Gauges()
    metrics_of(gauges, refresh_s=0.01).logged(10, METRICS)
    deadline_s = time.monotonic() + 60
    for _ in range(3):
        gauges.values.clear()
        while ("loss", "run") not in gauges.values:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)


@pytest.mark.parametrize("refresh_s", [60.0, 0.01])
def test_a_fault_is_told_once_and_nothing_is_raised(refresh_s: float) -> None:
    gauges, warnings, told = Gauges(), [], threading.Event()
    gauges.fault = ValueError("no agent\nat all")

    def warn(text: str) -> None:
        warnings.append(text)
        told.set()

    metrics = metrics_of(gauges, warn, refresh_s=refresh_s)
    metrics.started(1)
    assert told.wait(60)
    metrics.logged(10, METRICS)
    metrics.saved(1.0)
    time.sleep(0.1)
    assert warnings == ["Prometheus hears no more of this run (ValueError: no agent); training goes on"]
    assert gauges.calls == 1


def test_a_gauge_that_cannot_be_made_is_no_more_than_told() -> None:
    warnings: list[str] = []

    def make(name: str, **_: Any) -> Any:
        raise RuntimeError(f"no {name}")

    metrics_of(Gauges(), warnings.append, make=make).logged(10, METRICS)
    assert len(warnings) == 1


class Ends:
    """Stands for Ray's counter."""

    def __init__(self) -> None:
        self.counted: list[tuple[str, float, dict[str, str]]] = []
        self.fault: Exception | None = None
        self.name = ""

    def make(self, name: str, description: str, tag_keys: tuple[str, ...]) -> "Ends":
        assert tag_keys == ("run", "how")
        self.name = name
        return self

    def inc(self, value: float, tags: dict[str, str]) -> None:
        if self.fault is not None:
            raise self.fault
        self.counted.append((self.name, value, tags))


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (None, "done"),
        (Interrupted("stopped"), "interrupted"),
        (NonFiniteError("nan"), "not_finite"),
        (TrainingError("no"), "failed"),
        (KeyboardInterrupt(), "failed"),
    ],
)
@pytest.mark.parametrize("fault", [None, OSError("gone")])
def test_how_it_ends_is_counted_and_raised(
    error: BaseException | None, how: str, fault: Exception | None
) -> None:
    ends, warnings = Ends(), []
    ends.fault = fault

    def train() -> None:
        with end_counted("run", warnings.append, make=ends.make):
            if error is not None:
                raise error

    if error is None:
        train()
    else:
        with pytest.raises(type(error)) as raised:
            train()
        assert raised.value is error
    expected = [("hssl_pretrain_ends", 1, {"run": "run", "how": how})]
    assert ends.counted == ([] if fault else expected)
    assert warnings == (
        ["Prometheus does not hear how this run ended (OSError: gone)"] if fault is not None else []
    )


def test_there_is_no_memory_of_a_gpu_without_one() -> None:
    before = threading.active_count()
    with memory_exported("run", 0, torch.device("cpu"), print):
        assert threading.active_count() == before


def test_all_that_is_exported_has_a_label_of_few_values() -> None:
    assert {exported.label for exported in EXPORTED.values()} == {"", "term", "rank", "how"}
