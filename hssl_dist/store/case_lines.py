"""The cases of a manifest, left in its file and parsed one at a time.

Opening a manifest is one pass over its bytes, which are never held: it verifies the seal, reads the header,
and of each line that it is JSON with a name, dataset, patient, task, group, label flag and objects of the
right types, sorted by name and inside of its dataset and case. A line's other fields are validated, with
everything else the record promises, when the record is asked for.

The file stays open, so a manifest that is replaced meanwhile is read on as it was; one that is changed in
place is an error. A remote manifest is copied to an unlinked temporary file first.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import tempfile
import weakref
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, overload

import numpy as np
from pydantic import BaseModel, ValidationError

from hssl_dist import files
from hssl_dist.errors import CorruptError, StoreError
from hssl_dist.records import CaseRecord, Manifest, ManifestHeader
from hssl_dist.store import layout
from hssl_dist.store.sealed import sealed_lines

if TYPE_CHECKING:
    from jaxtyping import Bool, Int32, UInt64

_BLOCK_BYTES = 1 << 20
_PARSED_RECORDS = 256  # kept; each takes some 30 kB
_NO_PATH = re.compile(r"/\.{0,2}(?:/|\Z)|\0")  # an empty part, `.` or `..`; what no file can be called


# --------------------------------------------------------------------------------------------------- columns


@dataclass(frozen=True, slots=True, eq=False)
class Names:
    """Names that many cases share: those there are, sorted, and which of them each case has."""

    values: tuple[str, ...]
    numbers: Int32[np.ndarray, " case"]


@dataclass(frozen=True, slots=True, eq=False)
class CaseColumns:
    """What choosing among cases needs, in arrays of one entry per case, in the manifest's order.

    `by_id` lists the cases sorted by id. `scans` are 64 bits of each fingerprint, `scan_cases` their cases.
    """

    by_id: Int32[np.ndarray, " case"]
    patients: Names
    tasks: Names
    groups: Names
    labelled: Bool[np.ndarray, " case"]
    scans: UInt64[np.ndarray, " scan"]
    scan_cases: Int32[np.ndarray, " scan"]


def case_columns(cases: Sequence[CaseRecord]) -> CaseColumns:
    """Columns of a manifest's cases; those noted at its opening if it lies in a file."""
    if isinstance(cases, CaseLines):
        return cases.columns
    builder = _Columns()
    for case in cases:
        builder.add(case)
    ids = [case.id for case in cases]
    return builder.done(np.array(sorted(range(len(ids)), key=ids.__getitem__), np.int32))


class _Numbering:
    """Names by number while they come in."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self._numbers = array("i")

    def add(self, name: str) -> None:
        self._numbers.append(self._known.setdefault(name, len(self._known)))

    def done(self) -> Names:
        values = tuple(sorted(self._known))
        place = np.empty(len(values), np.int32)
        for number, name in enumerate(values):
            place[self._known[name]] = number
        return Names(values, place[np.array(self._numbers, np.int32)])


class _Columns:
    """Columns while their cases come in."""

    def __init__(self) -> None:
        self._patients, self._tasks, self._groups = _Numbering(), _Numbering(), _Numbering()
        self._labelled = bytearray()
        self._scans, self._scan_cases = array("Q"), array("i")

    def add(self, case: CaseRecord | _Noted) -> None:
        for fingerprint in case.fingerprints:
            digest = hashlib.blake2b(fingerprint.encode(), digest_size=8).digest()
            self._scans.append(int.from_bytes(digest, "little"))
            self._scan_cases.append(len(self._labelled))
        self._patients.add(case.patient)
        self._tasks.add(case.task)
        self._groups.add(case.group)
        self._labelled.append(case.labelled)

    def done(self, by_id: Int32[np.ndarray, " case"]) -> CaseColumns:
        return CaseColumns(
            by_id=by_id,
            patients=self._patients.done(),
            tasks=self._tasks.done(),
            groups=self._groups.done(),
            labelled=np.array(self._labelled, bool),
            scans=np.array(self._scans, np.uint64),
            scan_cases=np.array(self._scan_cases, np.int32),
        )


# ----------------------------------------------------------------------------------------------------- cases


class CaseLines(Sequence[CaseRecord]):
    """A read-only sequence of the records of a manifest's lines; a pickle holds the records themselves."""

    def __init__(self, lines: _Lines, columns: CaseColumns) -> None:
        self._lines = lines
        self._parse = functools.lru_cache(maxsize=_PARSED_RECORDS)(lines.record)
        self.columns = columns

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, key: int) -> CaseRecord: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[CaseRecord, ...]: ...
    def __getitem__(self, key: int | slice) -> CaseRecord | tuple[CaseRecord, ...]:
        if isinstance(key, slice):
            return tuple(map(self._lines.record, range(len(self))[key]))
        return self._parse(range(len(self))[key])

    def __iter__(self) -> Iterator[CaseRecord]:
        return map(self._lines.record, range(len(self)))  # what is met once is not worth keeping

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, tuple | CaseLines):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # records hold dictionaries

    def __reduce__(self) -> tuple[type[tuple[CaseRecord, ...]], tuple[tuple[CaseRecord, ...]]]:
        return tuple, (tuple(self),)

    def __repr__(self) -> str:
        return f"<{len(self)} cases of {self._lines.url}>"


class _Lines:
    """Where each case's line lies in an open file, and its checksum."""

    def __init__(self, url: str, stream: IO[bytes]) -> None:
        self.url = url
        self._file = os.dup(stream.fileno())
        weakref.finalize(self, os.close, self._file)
        self._ends = array("Q", [0])
        self._checksums = array("I")

    def __len__(self) -> int:
        return len(self._checksums)

    def skip(self, line: bytes) -> None:
        """Take note of the header's length."""
        self._ends[0] = len(line)

    def add(self, line: bytes) -> None:
        """Take note of the next case's line."""
        self._ends.append(self._ends[-1] + len(line))
        self._checksums.append(zlib.crc32(line))

    def record(self, place: int) -> CaseRecord:
        """The record of a line. Raises CorruptError if it is none, or has changed since it was noted."""
        begin, end = self._ends[place], self._ends[place + 1]
        line = os.pread(self._file, end - begin, begin)
        if len(line) != end - begin or zlib.crc32(line) != self._checksums[place]:
            raise CorruptError(f"{self.url} was changed in place while it was open; start again")
        try:
            return CaseRecord.model_validate_json(line)
        except ValidationError as error:
            raise _no_manifest(self.url, place + 1) from error


# --------------------------------------------------------------------------------------------------- opening


class _Object(BaseModel):
    path: str


class _Noted(BaseModel):
    """What is read of a line at opening: half of the time that the whole record takes."""

    id: str
    dataset: str
    patient: str
    task: str
    group: str
    labelled: bool
    fingerprints: tuple[str, ...] = ()
    objects: tuple[_Object, ...]


def open_manifest(url: str) -> Manifest:
    """A manifest whose cases stay in their file.

    Raises FileNotFoundError if there is none, CorruptError if its bytes are not as they were written, and
    StoreError if it names objects outside of its cases.
    """
    digest = hashlib.sha256()
    with _on_disk(url) as stream:
        notes = _Notes(url, stream)
        for line in sealed_lines(url, stream, digest):
            notes.add(line)
    return notes.manifest(digest.hexdigest())


def _on_disk(url: str) -> IO[bytes]:
    """A file of this machine with the bytes of `url`, at its start."""
    if files.is_local(url):
        return Path(url).open("rb", buffering=_BLOCK_BYTES)
    spool = tempfile.TemporaryFile(buffering=_BLOCK_BYTES)  # noqa: SIM115  (it is returned open)
    try:
        with files.open_read(url) as remote:
            shutil.copyfileobj(remote, spool, _BLOCK_BYTES)
        spool.seek(0)
    except BaseException:
        spool.close()
        raise
    return spool


class _Notes:
    """A manifest while its lines come in. What is wrong with a line counts once the seal has held."""

    def __init__(self, url: str, stream: IO[bytes]) -> None:
        self._url = url
        self._lines = _Lines(url, stream)
        self._columns = _Columns()
        self._header: ManifestHeader | None = None
        self._error: StoreError | None = None
        self._last_id = ""

    def add(self, line: bytes) -> None:
        if self._error is not None:
            return
        try:
            if self._header is None:
                self._header = ManifestHeader.model_validate_json(line)
                self._lines.skip(line)
            else:
                self._add_case(_Noted.model_validate_json(line), self._header)
                self._lines.add(line)
        except ValidationError as error:
            self._error = _no_manifest(self._url, len(self._lines) + (self._header is not None))
            self._error.__cause__ = error
        except StoreError as error:
            self._error = error

    def manifest(self, sha256: str) -> Manifest:
        if self._error is not None:
            raise self._error
        if self._header is None:
            raise _no_manifest(self._url, 0)
        columns = self._columns.done(np.arange(len(self._lines), dtype=np.int32))
        return Manifest(self._header, CaseLines(self._lines, columns), sha256)

    def _add_case(self, case: _Noted, header: ManifestHeader) -> None:
        _check_paths(self._url, case.id, (item.path for item in case.objects))
        if case.dataset != header.dataset:
            raise StoreError(
                f"{self._url} is of dataset {header.dataset!r} and lists case {case.id!r} of dataset "
                f"{case.dataset!r}; do not use it"
            )
        if case.id <= self._last_id:
            raise CorruptError(
                f"{self._url} lists case {case.id!r} after {self._last_id!r}, which is not sorted by id; "
                "preprocess the dataset again"
            )
        self._last_id = case.id
        self._columns.add(case)


def _no_manifest(url: str, case: int) -> CorruptError:
    where = f"case {case}" if case else "its header"
    return CorruptError(f"{url} is no manifest of format 1 ({where}); preprocess the dataset again")


def _check_paths(url: str, case_id: str, paths: Iterable[str]) -> None:
    """A manifest may come from anywhere: its paths must stay inside its case."""
    try:
        folder = layout.case_folder(case_id)
    except StoreError as error:
        raise StoreError(f"{url}: {error}; do not use it") from None
    for path in paths:
        if not path.startswith(f"{folder}/") or _NO_PATH.search(path):
            raise StoreError(f"{url} lists {path!r}, which is outside of its case {folder}; do not use it")
