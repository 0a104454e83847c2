"""What waits in a spool, sent to the server."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from hssl_dist.errors import TrackingError
from hssl_dist.files.ownership import Ownership
from hssl_dist.tracking.client import check_answers, is_outage, reason, refusals, shown
from hssl_dist.tracking.operations import Artifact, Metrics, Start
from hssl_dist.tracking.server import Server
from hssl_dist.tracking.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Callable

    from hssl_dist.config.parts import TrackingConfig
    from hssl_dist.tracking.registry import Version
    from hssl_dist.tracking.spool import Entry


@dataclass(slots=True)
class Replayed:
    """How much was sent."""

    segments: int = 0
    runs: int = 0
    metrics: int = 0
    artifacts: int = 0
    registered: list[Version] = field(default_factory=list)

    def add(self, entry: Entry, version: Version | None) -> None:
        """Count one more."""
        operation = entry.operation
        self.runs += isinstance(operation, Start)
        self.artifacts += isinstance(operation, Artifact)
        if isinstance(operation, Metrics):
            self.metrics += len(operation.points)
        if version is not None:
            self.registered.append(version)


def replay(
    server: Server,
    spool: Spool,
    ownership: Ownership,
    *,
    any_server: bool = False,
    call: Callable[[Callable[[], Version | None]], Version | None] = lambda action: action(),
) -> Replayed:
    """Send all segments in order; each goes once all of it is on the server. The spool must be owned.

    Cut off anywhere and done again it leaves the server as if done once. Each call to the server is made by
    `call`. Raises TrackingError for a corrupt segment and for what the server refuses, BusyError if
    another process has taken the spool over, and what MLflow raises if the server does not answer.
    """
    done = Replayed()
    for number in spool.numbers():
        for entry in spool.read(number, any_server=any_server):
            ownership.check()
            try:
                done.add(entry, call(partial(server.perform, entry, spool.run_folder)))
            except Exception as error:
                if is_outage(error):
                    raise
                where = spool.segment_url(number)
                raise TrackingError(
                    f"the server at {shown(server.config.uri)} refuses the {entry.operation.kind} in "
                    f"{where}: {reason(error)}; mend that, or remove the file to give it up"
                ) from error
        spool.remove(number)
        done.segments += 1
    return done


def waits(run_folder: str) -> bool:
    """Whether something in a run's folder waits for the server."""
    return Spool(run_folder, "").waits()


def sync(config: TrackingConfig, run_folder: str, *, any_server: bool = False) -> Replayed:
    """Send what waits in a run's folder, as another process than the run's.

    `any_server` sends it to the server of the config, whichever it was kept for. Raises BusyError if another
    process owns the spool, and TrackingError if the server does not answer or refuses, or a segment is
    corrupt.
    """
    spool = Spool(run_folder, shown(config.uri))
    ownership = Ownership(spool.folder, "sync")
    check_answers(config)
    ownership.claim()
    try:
        with refusals(config, "sending what waits"):
            return replay(Server(config), spool, ownership, any_server=any_server)
    finally:
        ownership.release()
