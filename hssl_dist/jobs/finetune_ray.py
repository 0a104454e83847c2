"""Fine-tuning as one task of a Ray cluster, on a GPU if the cluster has any."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray

from hssl_dist.console import Console
from hssl_dist.errors import Interrupted
from hssl_dist.jobs import cluster
from hssl_dist.jobs.liaison import POLL_S, Relay, driver_console, start_liaison, working
from hssl_dist.jobs.stopping import stop_requests

if TYPE_CHECKING:
    from hssl_dist.config.finetune import FinetuneConfig
    from hssl_dist.records import Outcome

Work = Callable[["FinetuneConfig", Console], "Outcome"]

_KEPT = "its last checkpoint is kept: run it again to go on"


def finetune_on_ray(config: FinetuneConfig, work: Work, console: Console) -> Outcome:
    """What `work` gives, done by a worker of the connected cluster; its lines are said here.

    Raises as `work` does there, Interrupted also if a stop was asked for while the task waited for room, and
    WorkerError if the worker or the cluster is lost.
    """
    liaison, task = start_liaison(), ray.remote(_run_task)
    options: dict[str, Any] = {"max_retries": 0, **cluster.task_resources(config.threads or 1)}
    reference = task.options(**options).remote(liaison, work, config)
    with stop_requests() as stop_requested, cluster.cluster_losses():
        relay = Relay(liaison, console, stop_requested)
        while not ray.wait([reference], timeout=POLL_S)[0]:
            relay.poll()
            if relay.begun is not None and not relay.begun:
                ray.cancel(reference)
                raise Interrupted("no worker was running; run it again to go on")
        relay.finish()
    outcome: Outcome = cluster.result(reference, _KEPT)
    return outcome


def _run_task(liaison: Any, work: Work, config: FinetuneConfig) -> Outcome:
    with working(liaison):
        return work(config, driver_console(liaison))
