"""Operations performed on the tracking server, so that one performed again changes nothing.

MLflow gives runs their ids and takes a metric as often as it is sent. What makes up for that is here: a run
is looked for by our own id before it is made, and a metric is not logged for a step that has one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar

from hssl_dist import files
from hssl_dist.errors import MissingError
from hssl_dist.tracking.client import (
    UUID_TAG,
    UnknownRunError,
    connect,
    experiment_id,
    known_run,
    run_by_uuid,
    shown,
)
from hssl_dist.tracking.operations import Artifact, End, Metrics, Point, Register, Start, uuid_of
from hssl_dist.tracking.registry import Version, publish

if TYPE_CHECKING:
    from hssl_dist.config.parts import TrackingConfig
    from hssl_dist.tracking.spool import Entry

Item = TypeVar("Item")

_METRICS_PER_CALL = 1000
_PER_CALL = 100
"""Params and tags, by MLflow's limits."""
_PARENT = "mlflow.parentRunId"  # MLflow's own: its pages show such a run below the other
_NAMING_RUNS = ("hssl.run_id", "hssl.parent_run")
"""Tags that hold a run's id; a local one is replaced by MLflow's where that is known."""


class Server:
    """The tracking server of a config. Raises what MLflow raises, and UnknownRunError."""

    def __init__(self, config: TrackingConfig) -> None:
        self.config = config
        self._client = connect(config)
        self._ids: dict[str, str] = {}
        self._made: set[str] = set()
        self._steps: dict[tuple[str, str], set[int]] = {}

    def perform(self, entry: Entry, run_folder: str) -> Version | None:
        """Do what the entry says. Returns the version of a registration."""
        operation = entry.operation
        if isinstance(operation, Start):
            self.start(operation)
        elif isinstance(operation, Metrics):
            self._log_metrics(operation)
        elif isinstance(operation, Artifact):
            self._put(operation, entry.data or b"")
        elif isinstance(operation, Register):
            return self._register(operation, run_folder)
        else:
            self._end(operation)
        return None

    def start(self, operation: Start, adopt: bool = False) -> tuple[str, str]:
        """Make the run, or go on with it; MLflow's id of it, and ours.

        To `adopt` is to go on with the newest unfinished run of the same name and config, as it was before
        runs had an id of our own, if none has that.
        """
        config = self.config.model_copy(update={"experiment": operation.experiment})
        experiment = experiment_id(self._client, config)
        tags = self._resolved(operation.tags)
        parent = None if operation.parent is None else self.resolve(operation.parent)
        known, run_uuid = self._find(operation), operation.uuid
        if known is None and adopt:
            known, run_uuid = self._unfinished(experiment, operation)
        tags |= {UUID_TAG: run_uuid} | ({} if parent is None else {_PARENT: parent})
        if known is None:
            made = self._client.create_run(
                experiment, start_time=operation.at_ms, run_name=operation.name, tags=tags
            )
            known, logged = str(made.info.run_id), {}
            self._made.add(known)
        else:
            self._client.update_run(known, status="RUNNING")
            self._log_tags(known, tags)
            logged = self._client.get_run(known).data.params
        self._log_params(known, {k: v for k, v in operation.params.items() if k not in logged})
        self._ids[operation.run] = known
        return known, run_uuid

    def resolve(self, run: str) -> str:
        """MLflow's id of a run. Raises UnknownRunError for a local id that the server does not know yet."""
        run_uuid = uuid_of(run)
        if run_uuid is None:
            return run
        if run not in self._ids:
            found = run_by_uuid(self._client, run_uuid)
            if found is None:
                raise UnknownRunError(
                    f"the run {run!r} is not at {shown(self.config.uri)} yet; sync the folder it is in first"
                )
            self._ids[run] = str(found.info.run_id)
        return self._ids[run]

    # --------------------------------------------------------------------------------------- how each is done

    def _find(self, operation: Start) -> str | None:
        """The run by our id, or by MLflow's if the operation has it; None if the server has lost it."""
        found = run_by_uuid(self._client, operation.uuid)
        if found is None and uuid_of(operation.run) is None:
            with suppress(MissingError):
                found = known_run(self._client, self.config, operation.run)
        return None if found is None or found.info.lifecycle_stage == "deleted" else str(found.info.run_id)

    def _unfinished(self, experiment: str, operation: Start) -> tuple[str | None, str]:
        wanted = (
            f"tags.`hssl.run` = '{operation.name}' "
            f"and tags.`hssl.config_hash` = '{operation.tags['hssl.config_hash']}' "
            "and attributes.status != 'FINISHED'"
        )
        found = self._client.search_runs(
            [experiment], wanted, max_results=1, order_by=["attributes.start_time DESC"]
        )
        if not found:
            return None, operation.uuid
        return str(found[0].info.run_id), found[0].data.tags.get(UUID_TAG, operation.uuid)

    def _log_metrics(self, operation: Metrics) -> None:
        from mlflow.entities import Metric

        run = self.resolve(operation.run)
        points = operation.points if operation.again else self._new(run, operation.points)
        for batch in _batches(points, _METRICS_PER_CALL):
            metrics = [Metric(key, float(value), at_ms, step) for key, value, at_ms, step in batch]
            self._client.log_batch(run, metrics=metrics)
            for point in batch:
                if (run, point.key) in self._steps:
                    self._steps[run, point.key].add(point.step)

    def _new(self, run: str, points: Sequence[Point]) -> list[Point]:
        """Those of a step that the run has no value of; the first of several."""
        new = {
            (point.key, point.step): point
            for point in reversed(points)
            if point.step not in self._known_steps(run, point.key)
        }
        return list(reversed(new.values()))

    def _known_steps(self, run: str, key: str) -> set[int]:
        if (run, key) not in self._steps:
            history = [] if run in self._made else self._client.get_metric_history(run, key)
            self._steps[run, key] = {int(entry.step) for entry in history}
        return self._steps[run, key]

    def _put(self, operation: Artifact, data: bytes) -> None:
        path = PurePosixPath(operation.path)
        folder = None if str(path.parent) == "." else str(path.parent)
        run = self.resolve(operation.run)
        with tempfile.TemporaryDirectory(prefix="hssl-artifact-") as temporary:
            file = Path(temporary) / path.name
            file.write_bytes(data)
            self._client.log_artifact(run, str(file), folder)

    def _register(self, operation: Register, run_folder: str) -> Version:
        return publish(
            self._client,
            operation.model_copy(
                update={"run": self.resolve(operation.run), "tags": self._resolved(operation.tags)}
            ),
            files.join(run_folder, operation.folder),
        )

    def _end(self, operation: End) -> None:
        self._client.set_terminated(self.resolve(operation.run), operation.status, operation.at_ms)

    def _resolved(self, tags: Mapping[str, str]) -> dict[str, str]:
        """The tags with MLflow's ids where it has them; a local one is found by the tag that runs bear."""
        resolved = dict(tags)
        for key in _NAMING_RUNS:
            if key in tags:
                with suppress(UnknownRunError):
                    resolved[key] = self.resolve(tags[key])
        return resolved

    def _log_params(self, run: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        for batch in _batches([Param(key, value) for key, value in params.items()], _PER_CALL):
            self._client.log_batch(run, params=batch)

    def _log_tags(self, run: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        for batch in _batches([RunTag(key, value) for key, value in tags.items()], _PER_CALL):
            self._client.log_batch(run, tags=batch)


def _batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
