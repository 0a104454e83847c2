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
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from ray.train import (
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
    get_preemption_info,
)
from ray.train.torch import TorchConfig, TorchTrainer, get_device

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
from hssl_dist.jobs import cluster
from hssl_dist.jobs.liaison import POLL_S, End, Liaison, Relay, asked_now_and_then, start_liaison
from hssl_dist.jobs.pretrain_metrics import RunMetrics, end_counted, memory_exported
from hssl_dist.jobs.pretrain_rank import train_rank, watched
from hssl_dist.records import Lineage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from hssl_dist.console import Console

_FINAL = (UsageError, CheckpointError, NonFiniteError, CorruptError, OutOfMemoryError)
"""Starting the workers again cannot mend these."""
_HEALTH_CHECK_S = 0.5
_SAY_S = 5.0
_LOOK_S = 5.0


class _NoMoreAttempts(UserCallback):
    """Ends the training where a worker has said how it ended: to Ray every failure is worth another attempt,
    and while one rank has failed the others wait for it. Its methods are called by Ray Train's controller.
    """

    def __init__(self, liaison: Any) -> None:
        self._liaison = liaison

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """What is raised here ends all workers, for good; without that Ray starts them again."""
        if ray.get(self._liaison.end.remote()) is not None:
            raise next(iter(worker_exceptions.values()))
        ray.get(self._liaison.lose.remote())


class _Liaison(Liaison):
    """One of whose metrics, starts and checkpoints Prometheus hears, too."""

    def __init__(self, run: str, planned_steps: int) -> None:
        super().__init__()
        self._told = RunMetrics(run, planned_steps, lambda line: self.say(f"warning: {line}"))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Metrics of a step."""
        super().log(step, metrics)
        self._told.logged(step, metrics)

    def started(self, workers: int) -> None:
        """So many workers train now."""
        self.say(f"training on {workers} worker{'s' if workers > 1 else ''}")
        self._told.started(workers)

    def saved(self, seconds: float) -> None:
        """A checkpoint is committed, after so many seconds of writing."""
        self._told.saved(seconds)


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
    help, TrainingError if workers failed more than `config.max_failures` times, and WorkerError if the
    cluster is lost.
    """
    _say_what_is_missing(config, console)
    liaison = start_liaison(_Liaison, config.name, config.encoder.steps + config.decoder.steps)
    failure: list[BaseException] = []
    with tempfile.TemporaryDirectory(prefix="hssl-ray-") as folder, _ray_train_environment(config):
        trainer = _trainer(config, lineage, liaison, folder)

        def fit() -> None:
            try:
                trainer.fit()
            except BaseException as error:  # noqa: BLE001  (raised again below, by the thread that waits)
                failure.append(error)

        # In a thread, so that this one is free to get signals; a daemon, so that a second Ctrl-C ends it all.
        fitting = threading.Thread(target=fit, name="ray-train-fit", daemon=True)
        fitting.start()
        with end_counted(config.name, console.warn):
            with cluster.cluster_losses():
                _wait(fitting, Relay(liaison, console, stop_requested, log))
                end = ray.get(liaison.end.remote())
            _raise_end(end, failure)


def _wait(fitting: threading.Thread, relay: Relay) -> None:
    """Relay what rank 0 says until the training has ended, and a request to stop. Raises WorkerError if the
    cluster's head is gone, and Interrupted if a stop is asked for while there are no workers, since they wait
    for room.
    """
    while fitting.is_alive():
        fitting.join(POLL_S)
        relay.poll()
        if relay.begun is not None and not relay.begun:
            raise Interrupted("no worker was running; run it again to go on")
    relay.finish()


def _trainer(config: PretrainConfig, lineage: Lineage, liaison: Any, folder: str) -> TorchTrainer:
    use_gpu = _resources().get("GPU", 0) > 0
    fewest, most = config.workers
    # The types that Ray declares are of the classes that Train V2 has replaced.
    workers: dict[str, Any] = {
        "num_workers": fewest if fewest == most else (fewest, most),
        "elastic_resize_monitor_interval_s": config.resize_every_s,
    }
    callbacks: list[Any] = [_NoMoreAttempts(liaison)]
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
            callbacks=callbacks,
        ),
    )


def _train_worker(settings: dict[str, Any]) -> None:
    """One worker's share, from its start or from the newest checkpoint."""
    config = PretrainConfig.model_validate_json(settings["config"])
    liaison = settings["liaison"]
    if ray.get(liaison.end.remote()) is not None:
        return  # A worker has said how it ended; these are new ones, for Ray resized the group meanwhile.
    ray.get(liaison.begin.remote(collectives.rank()))
    lead = collectives.rank() == 0
    if lead:
        liaison.started.remote(collectives.world_size())

    def warn(line: str) -> None:
        liaison.say.remote(f"warning: {line}")

    device = get_device()
    try:
        with (
            watched(config, lambda line: ray.get(liaison.say.remote(line), timeout=_SAY_S)),
            memory_exported(config.name, collectives.rank(), device, warn),
        ):
            train_rank(
                config,
                Lineage.model_validate_json(settings["lineage"]),
                device,
                log=lambda step, metrics: liaison.log.remote(step, dict(metrics)),
                say=lambda line: liaison.say.remote(line) if lead else None,
                warn=warn if lead else lambda _: None,
                advance=lambda _: None,
                stop_requested=asked_now_and_then(liaison) if lead else lambda: False,
                watch=_RayWatch(lead),
                saved=liaison.saved.remote,
            )
    except Interrupted:
        end: End = "interrupted"
    except _FINAL as error:
        # Also those that all ranks are to meet alike, such as a missing store: one node alone may lack it.
        ray.get(liaison.conclude.remote(error))
        raise  # The other ranks may wait for this one: let Ray end them all.
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


def _raise_end(end: End | None, failure: list[BaseException]) -> None:
    """What the workers said last comes before how Ray saw them end."""
    if isinstance(end, HsslError):
        raise end
    if end == "interrupted":
        raise Interrupted("a checkpoint is saved; run it again to go on")
    if end == "done":
        return
    if failure:
        if not isinstance(failure[0], TrainingFailedError):
            raise failure[0]
        raise TrainingError(_why(failure[0])) from failure[0]
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
