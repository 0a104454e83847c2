"""What is done to the tracking server, as plain records: performed at once, or kept and performed later.

Each names the run it belongs to: by MLflow's id, or by a local id where the run had none yet. Performed
again, it changes nothing.
"""

from __future__ import annotations

import posixpath
import re
import uuid
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field, TypeAdapter

from hssl_dist.records import Record, content_hash

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LATEST = "latest"
_LOCAL = "local-"
Status = Literal["FINISHED", "FAILED", "KILLED"]


class Point(NamedTuple):
    """A metric's value at a step; the value as text, since JSON knows no NaN."""

    key: str
    value: str
    timestamp_ms: int
    step: int


class Start(Record):
    """Make the run, or go on with it; `uuid` is our own and stays the same, whoever makes it and when."""

    kind: Literal["start"] = "start"
    run: str
    uuid: str
    name: str
    experiment: str
    params: dict[str, str]
    tags: dict[str, str]
    parent: str | None
    at_ms: int


class Metrics(Record):
    """Log metrics; a step that the run has a value of keeps it, unless it is to be logged `again`."""

    kind: Literal["metrics"] = "metrics"
    run: str
    points: tuple[Point, ...]
    again: bool = False


class Artifact(Record):
    """Put a file among the run's artifacts, in place of the one that is there."""

    kind: Literal["artifact"] = "artifact"
    run: str
    path: str
    size_bytes: int
    sha256: str


class Register(Record):
    """Register the model in `folder` (below the run's own) as the next version of `name`.

    `publication` tells this registration from any other: a version that bears it is not made again.
    """

    kind: Literal["register"] = "register"
    run: str
    publication: str
    name: str
    folder: str
    files: dict[str, str]
    tags: dict[str, str]
    aliases: tuple[str, ...]


class End(Record):
    """End the run."""

    kind: Literal["end"] = "end"
    run: str
    status: Status
    at_ms: int


Operation = Annotated[Start | Metrics | Artifact | Register | End, Field(discriminator="kind")]
OPERATIONS: TypeAdapter[list[Operation]] = TypeAdapter(list[Operation])


def new_uuid() -> str:
    """An id of our own for a run."""
    return uuid.uuid4().hex


def local_id(run_uuid: str) -> str:
    """What a run is called before the server has given it an id."""
    return _LOCAL + run_uuid


def uuid_of(run: str) -> str | None:
    """Our own id in a local id; None for an id of MLflow's."""
    return run.removeprefix(_LOCAL) if run.startswith(_LOCAL) else None


def points(step: int, metrics: Mapping[str, float], timestamp_ms: int) -> tuple[Point, ...]:
    """The metrics of one step."""
    return tuple(
        Point(metric_name(key), repr(float(value)), timestamp_ms, step) for key, value in metrics.items()
    )


def metric_name(name: str) -> str:
    """The name with what MLflow does not allow in one replaced by `_`: one bad name would cost the batch."""
    return posixpath.normpath(re.sub(r"[^\w.\- :/]", "_", name, flags=re.ASCII).lstrip("/"))


def merged(operations: Iterable[Metrics]) -> Metrics:
    """Metrics of one run in one operation, in order."""
    several = list(operations)
    every = tuple(point for operation in several for point in operation.points)
    return several[0].model_copy(update={"points": every})


def publication_of(run_uuid: str, name: str, sha256s: Mapping[str, str]) -> str:
    """The same for the same weights of the same run under the same name.

    The card does not count: it names the run, by a local id or by MLflow's.
    """
    weights = {file: sha256 for file, sha256 in sha256s.items() if file.endswith(".safetensors")}
    return content_hash({"run": run_uuid, "name": name, "weights": weights})[:32]
