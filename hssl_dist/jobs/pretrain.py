"""The pretraining job: tracks a run, trains it here or on Ray, registers the network.

All progress is in the run's folder (see `jobs.pretrain_rank`): the same name again resumes the run, and says
so if it is done.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from hssl_dist import collectives
from hssl_dist.console import Console
from hssl_dist.errors import CheckpointError, Interrupted
from hssl_dist.jobs import cluster
from hssl_dist.jobs.finished import NOT_REGISTERED, Wanted, is_done, read_done, write_done
from hssl_dist.jobs.lineage import lineage
from hssl_dist.jobs.pretrain_rank import (
    checkpoint_store,
    is_leading,
    model_url,
    read_sampled,
    run_url,
    torchrun_group,
    train_rank,
)
from hssl_dist.jobs.publish import register_safe
from hssl_dist.jobs.stopping import stop_requests
from hssl_dist.records import Outcome
from hssl_dist.report.curves import line_chart
from hssl_dist.report.figures import png
from hssl_dist.tracking import start_run
from hssl_dist.training.health import health_warnings
from hssl_dist.training.loop import History, newest
from hssl_dist.training.trajectory import check_same, trajectory, trajectory_hash

if TYPE_CHECKING:
    import torch

    from hssl_dist.config.pretrain import PretrainConfig
    from hssl_dist.records import Lineage, Manifest
    from hssl_dist.tracking import Run, Version

Log = Callable[[int, Mapping[str, float]], None]
_WITHOUT_SECRETS = {"tracking"}


def run(config: PretrainConfig, console: Console) -> Outcome:
    """Train to the end, or go on, and register; started by torchrun, as one of its ranks.

    Raises ConfigError if the run was started with another config, and the errors of training.
    """
    manifests = read_sampled(config)
    if is_leading():
        again = partial(_register_again, config, manifests, console)
        wanted = Wanted(model_url(config), again, config.register_as)
        done = read_done(config.tracking, run_url(config), config.name, trajectory(config, manifests), wanted)
        if done is not None:
            return done
    elif is_done(run_url(config)):
        return Outcome({}, silent=True)
    if config.runner == "ray":
        with cluster.connect(config.ray, console):
            return _lead(config, manifests, console, _train_on_ray)
    with torchrun_group(config) as device:
        if collectives.rank() == 0:
            return _lead(config, manifests, console, partial(_train_here, device=device))
        return _follow(config, manifests, device)


def _lead(
    config: PretrainConfig,
    manifests: Mapping[str, Manifest],
    console: Console,
    train: Callable[[PretrainConfig, Lineage, Log, Console, Callable[[], bool]], None],
) -> Outcome:
    """Track the run, train by `train`, register what it made."""
    made_from = _lineage(config, manifests)
    with stop_requests() as stop_requested:
        tracked = _begin(config, made_from, console)
        status: Literal["done", "failed", "interrupted"] = "failed"
        try:
            tracked.log_history(_saved_history(config, manifests))  # what a killed process had not sent
            own = made_from.model_copy(update={"parent_run": tracked.id})
            train(config, own, tracked.log_metrics, console, stop_requested)
            outcome = _conclude(config, manifests, own, tracked)
            status = "done"
        except Interrupted as request:
            status = "interrupted"
            outcome = _interrupted(config, tracked, str(request))
        finally:
            tracked.finish(status)
    return outcome


def _begin(config: PretrainConfig, made_from: Lineage, console: Console) -> Run:
    """The tracked run, new or gone on with."""
    params = config.model_dump(mode="json", exclude=_WITHOUT_SECRETS)
    tracked = start_run(
        config.tracking,
        config.name,
        params=params,
        tags={"hssl.job": "pretrain"},
        lineage=made_from,
        warn=console.warn,
        folder=run_url(config),
    )
    tracked.log_json("config.json", params)
    return tracked


def _train_here(
    config: PretrainConfig,
    made_from: Lineage,
    log: Log,
    console: Console,
    stop_requested: Callable[[], bool],
    device: torch.device,
) -> None:
    """Train in this process; a terminal shows a bar, anything else gets lines."""
    say = (lambda _: None) if console.is_terminal else console.say
    steps = config.encoder.steps + config.decoder.steps
    left = steps - (checkpoint_store(config).latest() or 0)
    with console.track(f"pretrain {config.name}", left) as advance:
        train_rank(
            config,
            made_from,
            device,
            log=log,
            say=say,
            warn=console.warn,
            advance=advance,
            stop_requested=stop_requested,
        )


def _train_on_ray(
    config: PretrainConfig,
    made_from: Lineage,
    log: Log,
    console: Console,
    stop_requested: Callable[[], bool],
) -> None:
    from hssl_dist.jobs.pretrain_ray import train_on_ray

    train_on_ray(config, made_from, log, console, stop_requested)


def _follow(config: PretrainConfig, manifests: Mapping[str, Manifest], device: torch.device) -> Outcome:
    """A torchrun rank other than 0: it trains, the rest is rank 0's."""
    quiet = Console(io.StringIO())
    with stop_requests() as stop_requested:
        try:
            _train_here(config, _lineage(config, manifests), _no_log, quiet, stop_requested, device)
        except Interrupted:
            return Outcome({}, status="interrupted", silent=True)
    return Outcome({}, silent=True)


def _no_log(step: int, metrics: Mapping[str, float]) -> None:
    """Only rank 0 has metrics."""


# ------------------------------------------------------------------------------------------- after training


def _conclude(
    config: PretrainConfig, manifests: Mapping[str, Manifest], made_from: Lineage, tracked: Run
) -> Outcome:
    """Log the curves, register the network, and note that the run is done: in this order, so that what is cut
    off is done by the same run again.
    """
    step, history = _progress(config)
    version = _deliver(config, made_from, tracked, history)
    tracked.finish("done")
    summary: dict[str, Any] = {
        "name": config.name,
        "run_id": tracked.id,
        "steps": step,
        "model": None if version is None else version.uri,
        "folder": model_url(config),
        "metrics": newest(history),
        "already_done": False,
    }
    write_done(run_url(config), trajectory(config, manifests), summary)
    registered = f"registered as {summary['model']} ({config.register_as}@latest)"
    return Outcome(
        summary,
        (
            f"run {config.name!r}: {step} steps, {NOT_REGISTERED if version is None else registered}",
            f"network: {model_url(config)}",
        ),
        warnings=tuple(health_warnings(history, config).values()),
    )


def _deliver(config: PretrainConfig, made_from: Lineage, tracked: Run, history: History) -> Version | None:
    tracked.log_history(history)
    _log_curves(tracked, history)
    return register_safe(tracked, model_url(config), config.register_as, made_from)


def _register_again(
    config: PretrainConfig, manifests: Mapping[str, Manifest], console: Console, _: str
) -> tuple[str, Version | None]:
    """The finished run's network in the registry, which may have lost it, and the run with it."""
    made_from = _lineage(config, manifests)
    with _begin(config, made_from, console) as tracked:
        own = made_from.model_copy(update={"parent_run": tracked.id})
        return tracked.id, _deliver(config, own, tracked, _saved_history(config, manifests))


def _interrupted(config: PretrainConfig, tracked: Run, reason: str) -> Outcome:
    step = checkpoint_store(config).latest() or 0
    summary = {"name": config.name, "run_id": tracked.id, "steps": step, "reason": reason}
    return Outcome(
        summary,
        (f"run {config.name!r} is interrupted after step {step}; run it again to go on",),
        status="interrupted",
    )


def _progress(config: PretrainConfig) -> tuple[int, History]:
    """Step and history of the newest checkpoint."""
    store = checkpoint_store(config)
    step = store.latest()
    if step is None:
        raise CheckpointError(f"there is no checkpoint at {store.url}, though the run has ended")
    return step, [(at, metrics) for at, metrics in store.load_state(step)["history"]]


def _saved_history(config: PretrainConfig, manifests: Mapping[str, Manifest]) -> History:
    """Metrics of the steps before the newest checkpoint. Raises ConfigError if that is of another run."""
    store = checkpoint_store(config)
    latest = store.latest()
    if latest is None:
        return []
    state = store.load_state(latest)
    check_same(config.name, state["trajectory"], trajectory(config, manifests))
    return [(step, metrics) for step, metrics in state["history"]]


def _lineage(config: PretrainConfig, manifests: Mapping[str, Manifest]) -> Lineage:
    return lineage(trajectory_hash(config, manifests), manifests.values())


def _log_curves(tracked: Run, history: History) -> None:
    for title, suffix in (("loss", "loss_"), ("accuracy", "_accuracy")):
        keys = sorted({key for _, metrics in history for key in metrics if suffix in key})
        series = {
            key.removeprefix(suffix).removesuffix(suffix): [
                (step, metrics[key]) for step, metrics in history if key in metrics
            ]
            for key in keys
        }
        if series:
            tracked.log_figure(f"figures/{title}.png", png(line_chart(series, y_label=title)))
