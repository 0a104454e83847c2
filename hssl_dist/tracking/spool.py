"""What the tracking server has not been told yet, in the run's own folder, local or remote.

    <run>/tracking/
      run.json                  which run this is: our own id, and MLflow's once there is one
      segment-00000001.json     operations in order, with a checksum
      segment-00000002.json     ...
      files/00000001.0          the artifacts of segment 1 by their place in it
      owner.lock, owner-*.json  see ownership.py

A segment is written whole and its artifacts before it, so a killed process leaves a segment or none. It goes
once all of it is on the server. Segments are replayed in order of their numbers, which have no gaps: one that
is missing between others, cut short or changed is an error that names it.

No address is kept but the server's, without user and password.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pydantic import ValidationError

from hssl_dist import files
from hssl_dist.errors import TrackingError
from hssl_dist.records import Record, canonical_json, content_hash
from hssl_dist.tracking.operations import OPERATIONS, Artifact, Operation, local_id

FOLDER = "tracking"
_IDENTITY = "run.json"
_SEGMENT = re.compile(r"segment-(\d{8})\.json")
_FORMAT = 1


class Identity(Record):
    """Which run a folder's is: for a name and a config always the same one, with the server or without."""

    uuid: str
    name: str
    config_hash: str
    run_id: str | None = None

    @property
    def id(self) -> str:
        """MLflow's id, or the local one."""
        return self.run_id or local_id(self.uuid)


@dataclass(frozen=True, slots=True)
class Entry:
    """An operation, and the bytes of an artifact."""

    operation: Operation
    data: bytes | None = None


class Spool:
    """The spool of the run in a folder. Only its owner (`ownership.Ownership`) appends and removes."""

    def __init__(self, run_folder: str, server: str) -> None:
        self.run_folder, self.folder = run_folder, files.join(run_folder, FOLDER)
        self._server = server

    def identity(self) -> Identity | None:
        """Which run this is; None if none was ever started. Raises TrackingError if that cannot be read."""
        url = files.join(self.folder, _IDENTITY)
        if not files.exists(url):
            return None
        try:
            return Identity.model_validate_json(files.read(url))
        except ValidationError:
            raise TrackingError(
                f"{url} does not say which run this is; remove it to start a new one"
            ) from None

    def keep(self, identity: Identity) -> None:
        """Note which run this is. Raises TrackingError if the storage refuses."""
        if self.identity() == identity:
            return
        url = files.join(self.folder, _IDENTITY)
        try:
            files.write(url, identity.to_json().encode())
        except OSError as error:
            raise TrackingError(f"{url} cannot be written: {error}; make room or mend the storage") from error

    def waits(self) -> bool:
        """Whether there is a segment, or no telling."""
        try:
            return any(_SEGMENT.fullmatch(name) for name in files.listing(self.folder))
        except OSError:
            return True

    def numbers(self) -> list[int]:
        """Numbers of the segments that wait, in order. Raises TrackingError if one is missing in between."""
        matches = (_SEGMENT.fullmatch(name) for name in files.listing(self.folder))
        found = sorted(int(match[1]) for match in matches if match)
        for before, after in pairwise(found):
            if after != before + 1:
                raise TrackingError(
                    f"{self.segment_url(before + 1)} is missing, though {self.segment_url(after)} is there; "
                    "bring it back, or remove what comes after it to give that up"
                )
        return found

    def append(self, entries: Sequence[Entry]) -> None:
        """Keep operations after those that wait. Raises OSError if the storage refuses."""
        number = next(reversed(self.numbers()), 0) + 1
        for place, entry in enumerate(entries):
            if entry.data is not None:
                files.write(self._file_url(number, place), entry.data)
        operations = OPERATIONS.dump_python([entry.operation for entry in entries], mode="json")
        content = {"format": _FORMAT, "number": number, "server": self._server, "operations": operations}
        segment = content | {"sha256": content_hash(content)}
        files.write(self.segment_url(number), canonical_json(segment).encode())

    def read(self, number: int, *, any_server: bool = False) -> list[Entry]:
        """The operations of a segment and the bytes of its artifacts.

        Raises TrackingError, naming the file, if one is missing, cut short or has other bytes than were
        written, or is for another server.
        """
        url = self.segment_url(number)
        content = _checked(url, number)
        if content["server"] != self._server and not any_server:
            raise TrackingError(
                f"{url} is for {content['server']}, tracking.uri is {self._server}: give the former, or run "
                "`hssl sync --moved true` if the server has moved"
            )
        try:
            operations = OPERATIONS.validate_python(content["operations"])
        except ValidationError:
            raise TrackingError(
                f"{url} holds what this version does not know; use the one it is of"
            ) from None
        return [
            Entry(operation, self._data(number, place, operation))
            for place, operation in enumerate(operations)
        ]

    def remove(self, number: int) -> None:
        """Remove a segment, all of which is on the server, and its artifacts."""
        files.remove(self.segment_url(number))
        for name in files.listing(files.join(self.folder, "files")):
            if name.startswith(f"{number:08d}."):
                files.remove(files.join(self.folder, "files", name))

    def segment_url(self, number: int) -> str:
        """Where a segment is."""
        return files.join(self.folder, f"segment-{number:08d}.json")

    def _file_url(self, number: int, place: int) -> str:
        return files.join(self.folder, "files", f"{number:08d}.{place}")

    def _data(self, number: int, place: int, operation: Operation) -> bytes | None:
        if not isinstance(operation, Artifact):
            return None
        url = self._file_url(number, place)
        try:
            data = files.read(url)
        except FileNotFoundError:
            raise TrackingError(
                f"{url} is missing, the artifact {operation.path!r}; {_remedy(url)}"
            ) from None
        if hashlib.sha256(data).hexdigest() != operation.sha256:
            raise TrackingError(
                f"{url}, the artifact {operation.path!r}, has other bytes than were written; {_remedy(url)}"
            )
        return data


def waiting(root: str) -> list[str]:
    """Folders of all runs below `root` (or at it) of which something waits, sorted."""
    found = set()
    for url in files.walk(root):
        *above, folder, name = url.split("/")
        if folder == FOLDER and _SEGMENT.fullmatch(name):
            found.add("/".join(above))
    return sorted(found)


def _checked(url: str, number: int) -> dict[str, Any]:
    """The content of a segment, which is what was written."""
    try:
        content = json.loads(files.read(url))
        sha256 = content.pop("sha256")
        whole = content_hash(content) == sha256 and content["number"] == number
    except FileNotFoundError:
        raise TrackingError(f"{url} is missing; {_remedy(url)}") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        whole = False
    if not whole:
        raise TrackingError(f"{url} is cut short or has other bytes than were written; {_remedy(url)}")
    if content["format"] != _FORMAT:
        raise TrackingError(f"{url} has format {content['format']}, expected {_FORMAT}; use a newer version")
    result: dict[str, Any] = content
    return result


def _remedy(url: str) -> str:
    return f"bring it back, or remove {url.rpartition('/' + FOLDER + '/')[0]}/{FOLDER} to give up what waits"
