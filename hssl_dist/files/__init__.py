"""Files by path or URL: on local disk, on object storage, in tar archives. Sole importer of fsspec.

A URL is a local path or anything fsspec knows (`s3://bucket/prefix`, `memory://x`); what is in an archive has
the archive's URL before it: `s3://bucket/Task04.tar!/Task04/dataset.json`. Local paths are absolute once a
config is resolved, so every process sees the same file. fsspec is imported by the first call.

    access.py     forms of S3 URLs, the S3 client, its errors
    faults.py     which faults of storage pass by themselves, trying again
    ranged.py     reading by ranges
    tar.py        archives read in place
    scratch.py    compressed archives
    ownership.py  one process at a time writes a folder
    sealed_json.py  JSON with a hash of its content
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import posixpath
import stat
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hssl_dist.errors import ConfigError, MissingError, StorageError
from hssl_dist.files.access import (
    attempted,
    check_endpoint,
    explained,
    parse,
    put,
    s3_filesystem,
    shown,
    with_access,
)
from hssl_dist.files.faults import Backoff, is_transient, lacks_space, remedy, retried
from hssl_dist.files.ranged import Fetch, open_ranges
from hssl_dist.files.scratch import decompressed
from hssl_dist.files.tar import Tar

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Backoff",
    "archive_root",
    "check_endpoint",
    "create",
    "exists",
    "filesystem",
    "ignored",
    "is_archive",
    "is_folder",
    "is_local",
    "is_transient",
    "join",
    "lacks_space",
    "listing",
    "open_read",
    "read",
    "relative",
    "remedy",
    "remove",
    "resolve",
    "retried",
    "sha256",
    "shown",
    "walk",
    "with_access",
    "write",
    "writing",
]

_BLOCK_BYTES = 1 << 20
_READ_AHEAD_BYTES = 8 << 20
_TAR_ENDINGS, _COMPRESSED_ENDINGS = (".tar",), (".tar.gz", ".tgz")
_ARCHIVES_KEPT = 8
_indexing = threading.Lock()
_archives: dict[str, tuple[str, Tar]] = {}
"""By URL: the state an archive was indexed in, and the archive."""


def resolve(url: str) -> str:
    """An absolute local path for a relative path or `file://` URL; other URLs without trailing slash."""
    if url.startswith("file://"):
        url = url.removeprefix("file://")
    if "://" in url:
        return url.rstrip("/")
    return str(Path(url).expanduser().absolute())


def is_local(url: str) -> bool:
    """Whether the URL is a path of this machine's file system, which any program can open."""
    return "://" not in url and _split(url) is None


def is_archive(url: str) -> bool:
    """Whether the URL names an archive: `.tar`, `.tar.gz` or `.tgz`."""
    return url.endswith((*_TAR_ENDINGS, *_COMPRESSED_ENDINGS))


def join(url: str, *parts: str) -> str:
    """The URL of a path below `url`."""
    return posixpath.join(url, *parts)


def relative(url: str, root: str) -> str:
    """The path of `url` below `root`."""
    return posixpath.relpath(url, root)


def archive_root(url: str) -> str:
    """The URL of an archive's only top folder, or of its top if it has more than that.

    Raises FileNotFoundError, or ConfigError if it is damaged, hostile or no archive.
    """
    return f"{url}!/{_archive(url).root}"


def ignored(url: str) -> list[str]:
    """What has been left out of the archive a URL leads into: a line for each kind of member."""
    archive = _split(url)
    return _archive(archive[0]).ignored if archive else []


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL and the URL's path in it: fsspec's, or `Tar`.

    Raises FileNotFoundError if the URL leads into an archive that is not there.
    """
    if (archive := _split(url)) is not None:
        return _archive(archive[0]), archive[1]
    if (place := parse(url)) is not None:
        return s3_filesystem(place), place.path
    import fsspec

    if "://" not in url:
        return fsspec.filesystem("file"), url
    fs, path = fsspec.core.url_to_fs(url)
    return fs, path


def exists(url: str) -> bool:
    """Whether a file or folder is there."""

    def find() -> bool:
        fs, path = filesystem(url)
        return bool(fs.exists(path))

    try:
        return attempted(url, find)
    except FileNotFoundError:
        return False


def is_folder(url: str) -> bool:
    """Whether there is a folder (or a non-empty prefix)."""

    def find() -> bool:
        fs, path = filesystem(url)
        return bool(fs.isdir(path))

    try:
        return attempted(url, find)
    except FileNotFoundError:
        return False


def listing(url: str) -> list[str]:
    """Names directly below a folder, sorted; empty if there is no such folder."""

    def find() -> list[Any]:
        fs, path = filesystem(url)
        return list(fs.ls(path, detail=False)) if fs.isdir(path) else []

    try:
        names = attempted(url, find)
    except FileNotFoundError:
        return []
    return sorted(posixpath.basename(str(name).rstrip("/")) for name in names)


def walk(url: str) -> Iterator[str]:
    """URLs of all files below a folder, sorted; none if there is no such folder."""

    def find() -> tuple[str, list[str]]:
        fs, path = filesystem(url)
        return path, sorted(map(str, fs.find(path)))

    try:
        path, names = attempted(url, find)
    except FileNotFoundError:
        return
    for name in names:
        yield join(url, posixpath.relpath(name, path or "."))


def read(url: str) -> bytes:
    """The bytes of a file. Raises as `open_read` does."""
    if is_local(url):
        with open_read(url) as stream:
            return stream.read()

    def fetch() -> bytes:
        fs, path = filesystem(url)
        return bytes(fs.cat_file(path))

    return attempted(url, fetch)


def open_read(url: str) -> IO[bytes]:
    """A file opened for reading bytes; elsewhere than on local disk it is read by ranges, some MB ahead.

    Raises FileNotFoundError, IsADirectoryError for a folder, and OSError for pipes and devices, which may
    never end.
    """
    if is_local(url):
        mode = Path(url).stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise OSError(errno.EINVAL, "it is a pipe or a device", url)
        return Path(url).open("rb")
    fetch, size_bytes, _ = attempted(url, lambda: _ranges(*filesystem(url), url))
    return open_ranges(fetch, size_bytes, max(1, min(size_bytes, _READ_AHEAD_BYTES)))


def write(url: str, data: bytes, *, durable: bool = False) -> None:
    """Put a file so that readers see the old bytes or the new ones, never a part.

    Object stores do that by themselves; on local disk the bytes are written aside, flushed and renamed. A
    `durable` file is there under its name after a loss of power too, once this returns: its folder is flushed
    as well, and that of each folder made for it. An object that was put is durable as it is.
    Raises MissingError if there is no such bucket.
    """
    if _split(url) is not None:
        raise ConfigError(f"{shown(url)} is in an archive, which is only read; choose another place")
    if is_local(url):
        _write_local(Path(url), data, durable)
        return
    fs, path = filesystem(url)
    if parse(url) is None:
        fs.pipe_file(path, data)
        return
    try:
        attempted(url, lambda: put(fs, path, data))
    except FileNotFoundError:
        raise _no_bucket(url, path) from None


@contextlib.contextmanager
def writing(output: str, remedy: str = "make room or choose another output") -> Iterator[None]:
    """Around what is written below `output`: StorageError of one line, with what to do, if it cannot be."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"{shown(output)} cannot be written: {error.strerror or error}; {remedy}"
        ) from error


def create(url: str, data: bytes) -> bool:
    """Put a file, whole, unless there is one of that name; whether it was put.

    Of several that try at once one succeeds, on local disk and S3. Other storage may look before it writes
    (Swift) and let several pass; and a put that is retried after its answer was lost finds its own file. So
    read what is there. Raises MissingError if there is no such bucket.
    """
    if is_local(url):
        target = Path(url)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{os.getpid()}.partial")
        aside.write_bytes(data)
        try:
            target.hardlink_to(aside)
        except FileExistsError:
            return False
        finally:
            aside.unlink()
        return True
    fs, path = filesystem(url)
    try:
        with explained(url):
            fs.pipe_file(path, data, mode="create")
    except FileNotFoundError:
        raise _no_bucket(url, path) from None
    except OSError:
        if exists(url):
            return False
        raise
    return True


def remove(url: str) -> None:
    """Remove a file or a whole folder if it is there."""
    if _split(url) is not None:
        raise ConfigError(f"{shown(url)} is in an archive, which is only read; choose another place")

    def take_away() -> None:
        fs, path = filesystem(url)
        if fs.exists(path):
            fs.rm(path, recursive=True)

    attempted(url, take_away)


def sha256(url: str) -> tuple[str, int]:
    """SHA-256 (hex) and size in bytes of a file, read in blocks. Raises FileNotFoundError."""
    digest, size = hashlib.sha256(), 0
    with open_read(url) as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size


def _no_bucket(url: str, path: str) -> MissingError:
    return MissingError(f"{shown(url)}: there is no bucket {path.partition('/')[0]!r}; make it first")


# ------------------------------------------------------------------------------------------------ local disk


def _write_local(target: Path, data: bytes, durable: bool) -> None:
    made = [folder for folder in (target.parent, *target.parent.parents) if durable and not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with aside.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()  # on a full disk it would hold what room there is
        raise
    if durable:
        for folder in (target.parent, *(each.parent for each in made)):
            _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system whose folders need no flush
            raise
    finally:
        os.close(descriptor)


# --------------------------------------------------------------------------------------------------- archives


def _split(url: str) -> tuple[str, str] | None:
    """The URL of the archive that a URL leads into, and the path in it; None if it leads into none."""
    archive, mark, path = url.partition("!/")
    return (archive, path.strip("/")) if mark and is_archive(archive) else None


def _ranges(fs: Any, path: str, url: str) -> tuple[Fetch, int, str]:
    """How to fetch a file's ranges, its size in bytes, and what tells this state of it from another."""
    info = fs.info(path)
    if info["type"] == "directory":
        raise IsADirectoryError(f"{shown(url)} is a folder")

    def fetch(start: int, stop: int) -> bytes:
        return attempted(url, lambda: bytes(fs.cat_file(path, start=start, end=stop)))

    return fetch, int(info["size"]), repr(sorted(info.items()))


def _archive(url: str) -> Tar:
    """The archive at a URL, as it is now: indexed once in a process for as long as it does not change."""
    fetch, size_bytes, version = attempted(url, lambda: _ranges(*filesystem(url), url))
    with _indexing:
        known = _archives.get(url)
        if known is None or known[0] != version:
            _archives.pop(url, None)
            _archives[url] = known = (version, _index(url, version, fetch, size_bytes))
            if len(_archives) > _ARCHIVES_KEPT:
                del _archives[next(iter(_archives))]
    return known[1]


def _index(url: str, version: str, fetch: Fetch, size_bytes: int) -> Tar:
    if url.endswith(_TAR_ENDINGS):
        return Tar(shown(url), size_bytes, fetch)
    with open_ranges(fetch, size_bytes, _READ_AHEAD_BYTES) as stream:
        path = decompressed(stream, shown(url), version)
    fetch, size_bytes, _ = _ranges(*filesystem(str(path)), str(path))
    return Tar(shown(url), size_bytes, fetch)
