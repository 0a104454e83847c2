"""Runs: what is logged while a job trains.

Starting a run must succeed. After that tracking never stops training: every log call goes through
`Run._attempt`, which warns once and goes on. Metrics are buffered, sent in batches, and kept (up to a
limit) while the server does not answer.
"""

from __future__ import annotations

import json
import posixpath
import re
import tempfile
import time
from collections import deque
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, Self

from hssl_dist.console import Console
from hssl_dist.errors import Interrupted, MissingError
from hssl_dist.records import Lineage, canonical_json
from hssl_dist.tracking.client import (
    connect,
    experiment_id,
    known_run,
    lineage_tags,
    reason,
    refusals,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlflow import MlflowClient
    from mlflow.entities import Metric

    from hssl_dist.config.parts import TrackingConfig

_SEND_EVERY_S = 2.0
_RETRY_AFTER_S = 30.0
_METRICS_PER_CALL = 1000
_PARAMS_PER_CALL = 100
_PARAM_LENGTH = 6000
_METRICS_KEPT = 100_000
_PARENT = "mlflow.parentRunId"  # MLflow's own: its pages show such a run below the other
_STATUS = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class Run:
    """One MLflow run. Only rank 0 of a job logs; none of the log calls raises."""

    def __init__(self, client: MlflowClient, run_id: str, warn: Callable[[str], None]) -> None:
        self._client = client
        self._id = run_id
        self._warn = warn
        self._warned = False
        self._pending: deque[Metric] = deque(maxlen=_METRICS_KEPT)
        self._next_send_s = time.monotonic() + _SEND_EVERY_S

    @property
    def id(self) -> str:
        """The run's id in MLflow."""
        return self._id

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish the run by how the block ended."""
        if kind is None:
            self.finish("done")
        else:
            self.finish("interrupted" if issubclass(kind, Interrupted | KeyboardInterrupt) else "failed")

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of one step; sent with the next batch, at most two seconds later."""
        from mlflow.entities import Metric

        now_ms = time.time_ns() // 1_000_000
        self._pending.extend(
            Metric(metric_name(key), float(value), now_ms, step) for key, value in metrics.items()
        )
        if time.monotonic() >= self._next_send_s:
            self.flush()

    def log_figure(self, name: str, png: bytes) -> None:
        """A picture, by its path among the run's artifacts, e.g. `figures/curves.png`."""
        self._put(name, png)

    def log_text(self, name: str, text: str) -> None:
        """A text file, by its path among the run's artifacts."""
        self._put(name, text.encode())

    def log_json(self, name: str, value: Any) -> None:
        """A JSON file, by its path among the run's artifacts."""
        self._put(name, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())

    def flush(self) -> None:
        """Send the metrics that wait; those the server does not take wait on."""
        while self._pending:
            batch = list(islice(self._pending, _METRICS_PER_CALL))
            if not self._attempt(partial(self._client.log_batch, self._id, metrics=batch)):
                self._next_send_s = time.monotonic() + _RETRY_AFTER_S
                return
            for _ in batch:
                self._pending.popleft()
        self._next_send_s = time.monotonic() + _SEND_EVERY_S

    def finish(self, status: Literal["done", "failed", "interrupted"] = "done") -> None:
        """Send what waits and end the run; one that is not `done` is taken up again by its name."""
        self.flush()
        self._attempt(lambda: self._client.set_terminated(self._id, _STATUS[status]))

    def _put(self, name: str, data: bytes) -> None:
        path = PurePosixPath(name)
        folder = None if str(path.parent) == "." else str(path.parent)
        with tempfile.TemporaryDirectory(prefix="hssl-artifact-") as temporary:
            file = Path(temporary) / path.name
            file.write_bytes(data)
            self._attempt(lambda: self._client.log_artifact(self._id, str(file), folder))

    def _attempt(self, action: Callable[[], object]) -> bool:
        """The one place where tracking may fail: whether the action succeeded."""
        try:
            action()
        except Exception as error:  # noqa: BLE001  (whatever it is, training goes on)
            if not self._warned:
                self._warned = True
                self._warn(f"tracking failed, the run goes on without it for now: {reason(error)}")
            return False
        return True


def start_run(
    config: TrackingConfig,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    lineage: Lineage,
    run_id: str | None = None,
    warn: Callable[[str], None] | None = None,
) -> Run:
    """Start a run, or go on with `run_id` (a new one if the server has lost it), or without it with an
    unfinished run of the same name and config hash.

    `params` may be nested: keys become dotted paths. The run is nested under `config.parent`, if given.
    `warn` is told, once, when logging fails. Raises TrackingError if the server cannot be reached or refuses.
    """
    client = connect(config)
    from mlflow.entities import RunTag

    with refusals(config, f"starting the run {name!r}"):
        experiment = experiment_id(client, config)
        known = None
        if run_id is None:
            known = _unfinished(client, experiment, name, lineage.config_hash)
        else:
            with suppress(MissingError):
                known = str(known_run(client, config, run_id).info.run_id)
        every_tag = {"hssl.run": name, **lineage_tags(lineage), **tags}
        if config.parent is not None:
            every_tag[_PARENT] = config.parent
        if known is None:
            known = str(client.create_run(experiment, run_name=name, tags=every_tag).info.run_id)
            logged: dict[str, str] = {}
        else:
            client.update_run(known, status="RUNNING")
            client.log_batch(known, tags=[RunTag(key, value) for key, value in every_tag.items()])
            logged = client.get_run(known).data.params
        _log_params(client, known, {k: v for k, v in flatten(params).items() if k not in logged})
    return Run(client, known, warn or Console().warn)


def attach_run(config: TrackingConfig, run_id: str, warn: Callable[[str], None] | None = None) -> Run:
    """The run of that id, for a worker of a job that has started it; the server is not asked."""
    return Run(connect(config), run_id, warn or Console().warn)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values by dotted path, as the text MLflow keeps: URLs without passwords, long text cut."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            text = shown(value) if isinstance(value, str) else canonical_json(value)
            flat[f"{prefix}{key}"] = text[:_PARAM_LENGTH]
    return flat


def metric_name(name: str) -> str:
    """The name with what MLflow does not allow in one replaced by `_`: one bad name would cost the batch."""
    return posixpath.normpath(re.sub(r"[^\w.\- :/]", "_", name, flags=re.ASCII).lstrip("/"))


def _log_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    entries = [Param(key, value) for key, value in params.items()]
    for start in range(0, len(entries), _PARAMS_PER_CALL):
        client.log_batch(run_id, params=entries[start : start + _PARAMS_PER_CALL])


def _unfinished(client: MlflowClient, experiment: str, name: str, config_hash: str) -> str | None:
    wanted = (
        f"tags.`hssl.run` = '{name}' and tags.`hssl.config_hash` = '{config_hash}' "
        "and attributes.status != 'FINISHED'"
    )
    found = client.search_runs([experiment], wanted, max_results=1, order_by=["attributes.start_time DESC"])
    return str(found[0].info.run_id) if found else None
