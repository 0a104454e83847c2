"""Tar archives read in place: an index of their members, each of which is a range of the archive.

Nothing is unpacked, so nothing is ever written by a name the archive gives. An archive that names a place
outside of itself, names one file twice, or is damaged or cut off, is refused whole. Members that are no plain
files (links, devices, sparse files) are left out, and `Tar.ignored` says so.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Any, cast

from hssl_dist.errors import ConfigError
from hssl_dist.files.ranged import Fetch, open_ranges

_INDEX_BLOCK_BYTES = 512 << 10
"""Headers of small members come many at a time; of a large member's data, no more than this comes along."""
_MAX_HEADER_BYTES = 256 << 10
"""Of one member, with its long name and its extended headers."""
_MAX_MEMBERS = 1_000_000
_MAX_DEPTH, _MAX_NAME_LENGTH = 64, 4096
_DAMAGED = (
    tarfile.TarError,
    ValueError,
    KeyError,
    IndexError,
    OverflowError,
    RecursionError,
    MemoryError,
)


@dataclass(frozen=True, slots=True)
class Member:
    """A file of an archive: `size_bytes` of it, from `offset`."""

    offset: int
    size_bytes: int


@dataclass(slots=True)
class Index:
    """The files of an archive by path, what is in each of its folders (`""` is its top), and what is in
    neither: how many members of each kind, and the first.
    """

    files: dict[str, Member] = field(default_factory=dict)
    folders: dict[str, set[str]] = field(default_factory=lambda: {"": set()})
    ignored: dict[str, tuple[int, str]] = field(default_factory=dict)


class Tar:
    """An archive's files, by the part of fsspec's interface that this package uses."""

    def __init__(self, name: str, size_bytes: int, fetch: Fetch) -> None:
        self.name = name
        self._fetch = fetch
        self._index = read_index(name, size_bytes, fetch)

    @property
    def ignored(self) -> list[str]:
        """A line for each kind of member that was left out."""
        return [
            f"{self.name}: {count} members are {kind} and are left out, first {first!r}"
            for kind, (count, first) in sorted(self._index.ignored.items())
        ]

    @property
    def root(self) -> str:
        """The only folder at the top, without which nothing is but hidden files; else the top, `""`."""
        top = [name for name in self._index.folders[""] if not name.startswith(".") and name != "__MACOSX"]
        return top[0] if len(top) == 1 and self.isdir(top[0]) else ""

    def exists(self, path: str) -> bool:
        """Whether a file or folder is there."""
        return path in self._index.files or path in self._index.folders

    def isdir(self, path: str) -> bool:
        """Whether a folder is there."""
        return path in self._index.folders

    def info(self, path: str) -> dict[str, Any]:
        """`type`, and `size` in bytes. Raises FileNotFoundError."""
        if path in self._index.folders:
            return {"name": path, "type": "directory", "size": 0}
        return {"name": path, "type": "file", "size": self._member(path).size_bytes}

    def ls(self, path: str, detail: bool = False) -> list[str]:  # noqa: ARG002  (fsspec's interface)
        """Paths directly below a folder, sorted. Raises FileNotFoundError."""
        if path not in self._index.folders:
            raise FileNotFoundError(f"{self.name} has no folder {path!r}")
        return sorted(posixpath.join(path, name) for name in self._index.folders[path])

    def find(self, path: str) -> list[str]:
        """Paths of all files below a folder, sorted."""
        prefix = f"{path}/" if path else ""
        return sorted(name for name in self._index.files if name.startswith(prefix))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes of a file, or a range of them. Raises FileNotFoundError."""
        member = self._member(path)
        first = min(start or 0, member.size_bytes)
        last = member.size_bytes if end is None else min(end, member.size_bytes)
        if last <= first:
            return b""
        return self._fetch(member.offset + first, member.offset + last)

    def _member(self, path: str) -> Member:
        try:
            return self._index.files[path]
        except KeyError:
            if path in self._index.folders:
                raise IsADirectoryError(f"{path!r} is a folder of {self.name}") from None
            raise FileNotFoundError(f"{self.name} has no file {path!r}") from None


def read_index(name: str, size_bytes: int, fetch: Fetch) -> Index:
    """The index of an uncompressed tar, from its headers alone.

    Raises ConfigError, naming what is wrong, for anything that is not a whole and harmless archive.
    """
    headers = _Headers(open_ranges(fetch, size_bytes, _INDEX_BLOCK_BYTES))
    index, count, offset = Index(), 0, -1
    try:
        with tarfile.open(
            fileobj=cast("IO[bytes]", headers), mode="r:", encoding="utf-8", errors="surrogateescape"
        ) as archive:
            while (member := archive.next()) is not None:
                headers.next_member()
                count += 1
                if archive.offset <= offset or member.size < 0:
                    raise tarfile.ReadError(f"member {count} leads back into the archive")
                offset = archive.offset
                if count > _MAX_MEMBERS:
                    raise tarfile.ReadError(f"more than {_MAX_MEMBERS} members")
                _add(index, member, size_bytes)
            headers.seek(archive.offset)
            end = headers.read(tarfile.BLOCKSIZE)
    except _DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{name} is no whole and plain tar archive: {reason}; fetch it again") from None
    if end != bytes(tarfile.BLOCKSIZE):
        raise ConfigError(
            f"{name} is damaged or cut off: after member {count} comes neither another nor the end; "
            "fetch it again"
        )
    return index


class _Headers:
    """What `tarfile` reads headers from. It believes the sizes that headers declare; this does not."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._left_bytes = _MAX_HEADER_BYTES

    def next_member(self) -> None:
        """Start counting anew."""
        self._left_bytes = _MAX_HEADER_BYTES

    def read(self, size: int) -> bytes:
        """Like any stream's. Raises ReadError where a member's headers are larger than can be."""
        self._left_bytes -= max(size, 1)
        if size < 0 or self._left_bytes < 0:
            raise tarfile.ReadError(f"headers of more than {_MAX_HEADER_BYTES} bytes")
        return self._stream.read(size)

    def seek(self, offset: int) -> int:
        """Like any stream's."""
        return self._stream.seek(offset)

    def tell(self) -> int:
        """Like any stream's."""
        return self._stream.tell()


def _add(index: Index, member: tarfile.TarInfo, archive_bytes: int) -> None:
    """Enter a member. Raises ReadError for one that no honest archive has."""
    kind = _kind(member)
    if kind is not None:
        count, first = index.ignored.get(kind, (0, member.name))
        index.ignored[kind] = (count + 1, first)
        return
    parts = _parts(member.name)
    path = "/".join(parts)
    if member.isdir():
        _add_folder(index, parts, member.name)
        return
    if not parts or path in index.files or path in index.folders:
        raise tarfile.ReadError(f"{member.name!r} stands in it twice")
    if member.offset_data + member.size > archive_bytes:
        raise tarfile.ReadError(f"{member.name!r} is cut off: it declares {member.size} bytes")
    _add_folder(index, parts[:-1], member.name)
    index.folders["/".join(parts[:-1])].add(parts[-1])
    index.files[path] = Member(member.offset_data, member.size)


def _kind(member: tarfile.TarInfo) -> str | None:
    """What a member is that is neither a plain file nor a folder."""
    if member.issym() or member.islnk():
        return "links"
    if member.isdev():
        return "devices"
    if member.issparse():
        return "sparse files"
    return None if member.isreg() or member.isdir() else "of unknown kind"


def _parts(name: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        raise tarfile.ReadError(f"{name!r} leads out of it")
    if len(parts) > _MAX_DEPTH or len(name) > _MAX_NAME_LENGTH:
        raise tarfile.ReadError(f"a name of {len(name)} characters and {len(parts)} folders")
    return parts


def _add_folder(index: Index, parts: Sequence[str], name: str) -> None:
    """Enter a folder and those it is in."""
    parent = ""
    for depth, part in enumerate(parts, start=1):
        index.folders[parent].add(part)
        parent = "/".join(parts[:depth])
        if parent in index.files:
            raise tarfile.ReadError(f"{name!r} needs a folder where a file stands")
        index.folders.setdefault(parent, set())
