"""Runs: what is logged while a job trains.

Tracking never stops training and never holds it up: every log call only queues (see sender.py). What the
server does not take waits in the run's folder (see spool.py), also the start of the run itself: then it goes
by a local id, under which it is found once it is on the server.
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING, Any, Literal, Self

from hssl_dist import files
from hssl_dist.console import Console
from hssl_dist.errors import Interrupted, TrackingError
from hssl_dist.files.ownership import Ownership
from hssl_dist.records import Lineage, canonical_json
from hssl_dist.tracking.client import is_denied, is_outage, lineage_tags, refusals, shown, silent
from hssl_dist.tracking.operations import (
    Artifact,
    End,
    Metrics,
    Register,
    Start,
    Status,
    local_id,
    new_uuid,
    points,
    publication_of,
    uuid_of,
)
from hssl_dist.tracking.registry import hashes
from hssl_dist.tracking.replay import replay
from hssl_dist.tracking.sender import Sender, Ticket
from hssl_dist.tracking.server import Server
from hssl_dist.tracking.spool import Entry, Identity, Spool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from hssl_dist.config.parts import TrackingConfig
    from hssl_dist.tracking.operations import Operation
    from hssl_dist.tracking.registry import Version

_PARAM_LENGTH = 6000
_CLAIM_WAIT_S = 30.0
_STATUS: dict[str, Status] = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class Run:
    """One MLflow run, logged to by one process. None of the log calls raises or waits."""

    def __init__(
        self, run_id: str, run_uuid: str, server: Server, sender: Sender, folder: str | None
    ) -> None:
        self._id, self._uuid = run_id, run_uuid
        self._server, self._sender, self._folder = server, sender, folder
        self._ended = False

    @property
    def id(self) -> str:
        """The run's id in MLflow, or a local one if it was started while the server was down."""
        return self._id

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish the run by how the block ended, unless it is finished."""
        if kind is None:
            self.finish("done")
        else:
            self.finish("interrupted" if issubclass(kind, Interrupted | KeyboardInterrupt) else "failed")

    def log_metrics(self, step: int, metrics: Mapping[str, float], *, again: bool = False) -> None:
        """Metrics of one step; sent with the next batch, two seconds later.

        A metric of a step that the run has a value of keeps that: a resumed run repeats the steps after its
        checkpoint. Unless it is logged `again`: then the later value counts.
        """
        self._do(Metrics(run=self._id, points=points(step, metrics, _now_ms()), again=again))

    def log_history(self, history: Iterable[tuple[int, Mapping[str, float]]]) -> None:
        """Metrics of many steps, those the run has not got yet: what a killed process had logged last."""
        now_ms = _now_ms()
        every = tuple(point for step, metrics in history for point in points(step, metrics, now_ms))
        if every:
            self._do(Metrics(run=self._id, points=every))

    def log_figure(self, name: str, png: bytes) -> None:
        """A picture, by its path among the run's artifacts, e.g. `figures/curves.png`."""
        self._put(name, png)

    def log_text(self, name: str, text: str) -> None:
        """A text file, by its path among the run's artifacts."""
        self._put(name, text.encode())

    def log_json(self, name: str, value: Any) -> None:
        """A JSON file, by its path among the run's artifacts."""
        self._put(name, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())

    def register(
        self, folder: str, name: str, lineage: Lineage, aliases: Iterable[str] = ()
    ) -> Version | None:
        """Register the model in a folder below the run's as the next version of `name`, with its aliases.

        The same files of the same run are registered once, however often this is called. None if the server
        does not answer: it is done when what waits in the run's folder is sent. Raises TrackingError if the
        server refuses, or does not answer and the run has no folder, and CheckpointError for a folder that
        holds anything but safetensors and JSON.
        """
        sha256s = hashes(folder)
        ticket = self._do(
            Register(
                run=self._id,
                publication=publication_of(self._uuid, name, sha256s),
                name=name,
                folder=folder if self._folder is None else files.relative(folder, self._folder),
                files=sha256s,
                tags={"hssl.run_id": self._id, **lineage_tags(lineage)},
                aliases=tuple(aliases),
            )
        )
        self._sender.flush(patience_s=float("inf"))
        if ticket.error is not None:
            with refusals(self._server.config, f"registering {name!r}"):
                raise ticket.error
        if not ticket.settled:
            raise TrackingError(
                f"registering {name!r} failed at {shown(self._server.config.uri)}: {self._sender.why}"
            )
        return ticket.version

    def flush(self) -> None:
        """Wait until all that was logged is on the server, or kept in the run's folder."""
        self._sender.flush()

    def finish(self, status: Literal["done", "failed", "interrupted"] = "done") -> None:
        """Send what waits and end the run, once; one that is not `done` is taken up again by its name."""
        if not self._ended:
            self._ended = True
            self._do(End(run=self._id, status=_STATUS[status], at_ms=_now_ms()))
            self._sender.close()

    def close(self) -> None:
        """Send what waits; the run is ended by whoever has started it."""
        self._sender.close()

    def _put(self, name: str, data: bytes) -> None:
        sha256 = hashlib.sha256(data).hexdigest()
        self._do(Artifact(run=self._id, path=name, size_bytes=len(data), sha256=sha256), data)

    def _do(self, operation: Operation, data: bytes | None = None) -> Ticket:
        return self._sender.put(Entry(operation, data))


def start_run(
    config: TrackingConfig,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    lineage: Lineage,
    run_id: str | None = None,
    warn: Callable[[str], None] | None = None,
    folder: str | None = None,
) -> Run:
    """Start a run, or go on with the one that was started in `folder` by the same name and config, or with
    `run_id` (a new one if the server has lost it), or without either with an unfinished run of the same name
    and config hash.

    `params` may be nested: keys become dotted paths. The run is nested under `config.parent`, if given. What
    an earlier process left in `folder` is sent first. If the server does not answer, all waits there; without
    a folder that is a TrackingError. Raises TrackingError too if the server refuses, or what waits is corrupt
    or for another server. `warn` is told, once, when logging fails.
    """
    say, server = warn or Console().warn, Server(config)
    spool = None if folder is None else Spool(folder, shown(config.uri))
    ownership = None if spool is None else Ownership(spool.folder, "run")
    identity = _identity(spool, name, lineage.config_hash, run_id)
    if spool is not None:
        spool.keep(identity)  # before the run is made: if that is cut off, it is found again
    operation = Start(
        run=identity.id,
        uuid=identity.uuid,
        name=name,
        experiment=config.experiment,
        params=flatten(params),
        tags={"hssl.run": name, **lineage_tags(lineage), **tags},
        parent=config.parent,
        at_ms=_now_ms(),
    )
    try:
        known, run_uuid = _start(server, spool, ownership, operation, adopt=identity.run_id is None)
    except Exception as error:
        if spool is None or ownership is None or is_denied(error) or not is_outage(error):
            if ownership is not None:
                ownership.release()
            with refusals(config, f"starting the run {name!r}"):
                raise
        sender = Sender(server, spool, ownership, say, down=error)
        sender.put(Entry(operation))
        sender.flush()
        return Run(identity.id, identity.uuid, server, sender, folder)
    if spool is not None:
        spool.keep(identity.model_copy(update={"run_id": known, "uuid": run_uuid}))
    return Run(known, run_uuid, server, Sender(server, spool, ownership, say), folder)


def attach_run(
    config: TrackingConfig,
    run_id: str,
    warn: Callable[[str], None] | None = None,
    folder: str | None = None,
) -> Run:
    """The run of that id, for a job that adds to it; the server is not asked. What it does not take waits in
    `folder`, where other things than the run's own process write. `close` it when all is logged.
    """
    spool = None if folder is None else Spool(folder, shown(config.uri))
    ownership = None if spool is None else Ownership(spool.folder, "run")
    server = Server(config)
    sender = Sender(server, spool, ownership, warn or Console().warn)
    return Run(run_id, uuid_of(run_id) or run_id, server, sender, folder)


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


def _start(
    server: Server, spool: Spool | None, ownership: Ownership | None, operation: Start, *, adopt: bool
) -> tuple[str, str]:
    """Send what an earlier process left, then start the run; MLflow's id of it, and ours."""
    if (why := silent(server.config)) is not None:
        raise ConnectionError(why)
    if spool is not None and ownership is not None and spool.numbers():
        ownership.claim(_CLAIM_WAIT_S)
        replay(server, spool, ownership)
    return server.start(operation, adopt=adopt)


def _identity(spool: Spool | None, name: str, config_hash: str, run_id: str | None) -> Identity:
    """Which run this is: the folder's, if that is the one that is meant, or a new one."""
    kept = None if spool is None else spool.identity()
    if kept is not None:
        same = (kept.name, kept.config_hash) == (name, config_hash)
        if same if run_id is None else run_id in (kept.run_id, local_id(kept.uuid)):
            return kept.model_copy(update={"name": name, "config_hash": config_hash})
    run_uuid = None if run_id is None else uuid_of(run_id)
    if run_uuid is not None:
        return Identity(uuid=run_uuid, name=name, config_hash=config_hash)
    return Identity(uuid=new_uuid(), name=name, config_hash=config_hash, run_id=run_id)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
