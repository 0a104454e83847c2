"""Pretraining on the workers of a Ray cluster, by Ray Train's `TorchTrainer`.

Ray starts the workers, joins them in a process group and starts them again when one fails; the state they go
on from is our own checkpoints, so Ray Train keeps none. Driver and workers talk through one small actor.
"""

from __future__ import annotations

import math
import os
import tempfile
import threading
import time
import uuid
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, get_preemption_info
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from hssl_dist import collectives
from hssl_dist.config.pretrain import PretrainConfig
from hssl_dist.errors import (
    CheckpointError,
    CorruptError,
    HsslError,
    Interrupted,
    NonFiniteError,
    OutOfMemoryError,
    TrainingError,
    UsageError,
)
from hssl_dist.jobs.pretrain_rank import train_rank, watched
from hssl_dist.records import Lineage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from hssl_dist.console import Console

# Starting the workers again cannot mend these. All ranks meet the first ones alike.
_FINAL_ON_ALL = (UsageError, CheckpointError, NonFiniteError)
_FINAL_ON_ONE = (CorruptError, OutOfMemoryError)
_POLL_S = 0.25
_HEALTH_CHECK_S = 0.5
_SAY_S = 5.0
_LOOK_S = 5.0


@ray.remote(num_cpus=0)
class Liaison:
    """What the driver and rank 0 tell each other."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque()
        self._metrics: deque[tuple[int, dict[str, float]]] = deque()
        self._stop = False
        self._end: Literal["done", "interrupted"] | HsslError | None = None

    def say(self, line: str) -> None:
        """A line for the driver's console."""
        self._lines.append(line)

    def lines(self) -> list[str]:
        """The lines said since the last call."""
        lines, self._lines = list(self._lines), deque()
        return lines

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Metrics of a step, for the driver to track."""
        self._metrics.append((step, metrics))

    def metrics(self) -> list[tuple[int, dict[str, float]]]:
        """The metrics logged since the last call, in order."""
        metrics, self._metrics = list(self._metrics), deque()
        return metrics

    def request_stop(self) -> None:
        """Ask the workers to save a checkpoint and end."""
        self._stop = True

    def stop_requested(self) -> bool:
        """Whether the workers are asked to end."""
        return self._stop

    def conclude(self, end: Literal["done", "interrupted"] | HsslError) -> None:
        """How the training ended, for good."""
        self._end = end

    def end(self) -> Literal["done", "interrupted"] | HsslError | None:
        """How it ended; None while it has not."""
        return self._end


def train_on_ray(
    config: PretrainConfig,
    lineage: Lineage,
    log: Callable[[int, Mapping[str, float]], None],
    console: Console,
    stop_requested: Callable[[], bool],
) -> None:
    """Train on `config.workers` workers of the connected cluster, of a range as many as there is room for.

    `log` is called here, in the driver.

    Raises Interrupted once a checkpoint is saved on request, what a worker raised if starting it again cannot
    help, and TrainingError if workers failed more than `config.max_failures` times.
    """
    _say_what_is_missing(config, console)
    liaison = _here(Liaison).remote()
    failure: list[BaseException] = []
    with tempfile.TemporaryDirectory(prefix="hssl-ray-") as folder, _ray_train_environment(config):
        trainer = _trainer(config, lineage, liaison, folder)

        def fit() -> None:
            try:
                trainer.fit()
            except BaseException as error:  # noqa: BLE001  (raised again below, by the thread that waits)
                failure.append(error)

        # In a thread, so that this one is free to get signals; a daemon, so that a second signal ends it all.
        fitting = threading.Thread(target=fit, name="ray-train-fit", daemon=True)
        fitting.start()
        asked = False

        def relay() -> None:
            for line in ray.get(liaison.lines.remote()):
                console.say(line)
            for step, metrics in ray.get(liaison.metrics.remote()):
                log(step, metrics)

        while fitting.is_alive():
            fitting.join(_POLL_S)
            relay()
            if stop_requested() and not asked:
                asked = True
                console.say("asked to stop: saving a checkpoint")
                ray.get(liaison.request_stop.remote())
        relay()
    _raise_end(ray.get(liaison.end.remote()), failure)


def _here(actor: Any) -> Any:
    """The actor on this process's node: it is to live as long as the run does, not as long as some worker."""
    node = ray.get_runtime_context().get_node_id()
    return actor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))


def _trainer(config: PretrainConfig, lineage: Lineage, liaison: Any, folder: str) -> TorchTrainer:
    use_gpu = _resources().get("GPU", 0) > 0
    fewest, most = config.workers
    # As a mapping: the types that Ray declares are of the class that Train V2 has replaced.
    workers: dict[str, Any] = {
        "num_workers": fewest if fewest == most else (fewest, most),
        "elastic_resize_monitor_interval_s": config.resize_every_s,
    }
    resources = {"CPU": float(config.threads_per_worker)} | ({"GPU": 1.0} if use_gpu else {})
    return TorchTrainer(
        _train_worker,
        train_loop_config={
            "config": config.model_dump_json(),
            "lineage": lineage.to_json(),
            "liaison": liaison,
        },
        torch_config=TorchConfig(
            backend="nccl" if use_gpu else "gloo", timeout_s=math.ceil(config.collective_timeout_s)
        ),
        scaling_config=ScalingConfig(**workers, use_gpu=use_gpu, resources_per_worker=resources),
        # A name of its own for each attempt: Ray Train must not resume what our checkpoints resume.
        run_config=RunConfig(
            name=f"{config.name}-{uuid.uuid4().hex[:8]}",
            storage_path=folder,
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )


def _train_worker(settings: dict[str, Any]) -> None:
    """One worker's share, from its start or from the newest checkpoint."""
    config = PretrainConfig.model_validate_json(settings["config"])
    liaison = settings["liaison"]
    if ray.get(liaison.end.remote()) is not None:
        return  # A worker has said that going on is of no use; these are new ones that Ray has started.
    lead = collectives.rank() == 0
    if lead:
        size = collectives.world_size()
        liaison.say.remote(f"training on {size} worker{'s' if size > 1 else ''}")
    try:
        with watched(config, lambda line: ray.get(liaison.say.remote(line), timeout=_SAY_S)):
            train_rank(
                config,
                Lineage.model_validate_json(settings["lineage"]),
                get_device(),
                log=lambda step, metrics: liaison.log.remote(step, dict(metrics)),
                say=lambda line: liaison.say.remote(line) if lead else None,
                warn=lambda line: liaison.say.remote(f"warning: {line}") if lead else None,
                advance=lambda _: None,
                stop_requested=_asked_now_and_then(liaison) if lead else lambda: False,
                watch=_RayWatch(lead),
            )
    except Interrupted:
        end: Literal["done", "interrupted"] | HsslError = "interrupted"
    except (*_FINAL_ON_ALL, *_FINAL_ON_ONE) as error:
        ray.get(liaison.conclude.remote(error))
        if isinstance(error, _FINAL_ON_ONE):
            raise  # The other ranks wait for this one: let Ray end them all.
        return
    else:
        end = "done"
    if lead:
        ray.get(liaison.conclude.remote(end))


class _RayWatch:
    """What Ray Train says of nodes that are drained, as those of a cloud are before they are reclaimed.

    Asking is a barrier of all workers, so rank 0 decides when.
    """

    def __init__(self, lead: bool) -> None:
        self._lead, self._next_s = lead, time.monotonic() + _LOOK_S
        self._known: set[str] = set()

    def is_due(self) -> bool:
        """Rank 0's say, every few seconds."""
        if not self._lead or time.monotonic() < self._next_s:
            return False
        self._next_s = time.monotonic() + _LOOK_S
        return True

    def going(self) -> str:
        """The nodes that were not known to go."""
        info = get_preemption_info()
        new = set() if info is None else set(info.preempted_node_ids) - self._known
        if info is None or not new:
            return ""
        self._known |= new
        ranks = sorted({rank for node in new for rank in info.preempted_node_to_ranks[node]})
        return f"the node of rank {', '.join(map(str, ranks))} is"


def _asked_now_and_then(liaison: Any) -> Callable[[], bool]:
    """Asks the liaison at most every `_POLL_S` seconds; once asked to stop it stays so."""
    asked, next_s = False, 0.0

    def stop_requested() -> bool:
        nonlocal asked, next_s
        if not asked and time.monotonic() >= next_s:
            asked = bool(ray.get(liaison.stop_requested.remote()))
            next_s = time.monotonic() + _POLL_S
        return asked

    return stop_requested


def _raise_end(end: Literal["done", "interrupted"] | HsslError | None, failure: list[BaseException]) -> None:
    if isinstance(end, HsslError):
        raise end
    if end == "interrupted":
        raise Interrupted("a checkpoint is saved; run it again to go on")
    if failure:
        if not isinstance(failure[0], TrainingFailedError):
            raise failure[0]
        raise TrainingError(_why(failure[0])) from failure[0]
    if end is None:
        raise TrainingError("the Ray workers ended without saying how; look at their logs")


def _why(error: TrainingFailedError) -> str:
    """One line about the workers (or the controller) that failed for the last time."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {}) or {}
    for rank, cause in sorted(failures.items()):
        original = getattr(cause, "_base_exc", cause)
        text = next(iter(str(original).strip().splitlines()), "")
        return f"worker {rank} failed with {type(original).__name__}: {text}; no attempts are left"
    return f"Ray Train failed: {str(error).strip().splitlines()[-1]}"


def _resources() -> dict[str, float]:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources


def _say_what_is_missing(config: PretrainConfig, console: Console) -> None:
    fewest, _ = config.workers
    needed = fewest * config.threads_per_worker
    there = int(_resources().get("CPU", 0))
    if there < needed:
        console.warn(
            f"workers {fewest} x threads_per_worker {config.threads_per_worker} need {needed} CPUs, "
            f"the cluster has {there}: the run waits until it grows"
        )


@contextmanager
def _ray_train_environment(config: PretrainConfig) -> Iterator[None]:
    """Settings that Ray Train takes from the driver's environment only; the user's own go first."""
    wanted = {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": str(_HEALTH_CHECK_S),
        "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": str(config.collective_timeout_s),
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
    }
    added = {key: value for key, value in wanted.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)
