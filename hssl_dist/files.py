"""Files by path or URL, on local disk or object storage. Sole importer of fsspec.

A URL is a local path or anything fsspec knows (`s3://bucket/prefix`, `memory://x`). Local paths are absolute
once a config is resolved, so every process sees the same file. fsspec is imported by the first call.
"""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import stat
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK_BYTES = 1 << 20


def resolve(url: str) -> str:
    """An absolute local path for a relative path or `file://` URL; other URLs without trailing slash."""
    if url.startswith("file://"):
        url = url.removeprefix("file://")
    if "://" in url:
        return url.rstrip("/")
    return str(Path(url).expanduser().absolute())


def is_local(url: str) -> bool:
    """Whether the URL is a path of this machine's file system."""
    return "://" not in url


def join(url: str, *parts: str) -> str:
    """The URL of a path below `url`."""
    return posixpath.join(url, *parts)


def relative(url: str, root: str) -> str:
    """The path of `url` below `root`."""
    return posixpath.relpath(url, root)


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the URL's path in it."""
    import fsspec

    fs, path = fsspec.core.url_to_fs(url)
    return fs, path


def exists(url: str) -> bool:
    """Whether a file or folder is there."""
    fs, path = filesystem(url)
    return bool(fs.exists(path))


def is_folder(url: str) -> bool:
    """Whether there is a folder (or a non-empty prefix)."""
    fs, path = filesystem(url)
    return bool(fs.isdir(path))


def listing(url: str) -> list[str]:
    """Names directly below a folder, sorted; empty if there is no such folder."""
    fs, path = filesystem(url)
    if not fs.isdir(path):
        return []
    fs.invalidate_cache(path)
    return sorted(posixpath.basename(str(name).rstrip("/")) for name in fs.ls(path, detail=False))


def walk(url: str) -> Iterator[str]:
    """URLs of all files below a folder, sorted."""
    fs, path = filesystem(url)
    fs.invalidate_cache()
    for name in sorted(fs.find(path)):
        yield join(url, posixpath.relpath(str(name), path))


def read(url: str) -> bytes:
    """The bytes of a file. Raises FileNotFoundError."""
    fs, path = filesystem(url)
    return bytes(fs.cat_file(path))


def open_read(url: str) -> IO[bytes]:
    """A file opened for reading bytes. Raises OSError, also for pipes and devices, which may never end."""
    fs, path = filesystem(url)
    if is_local(url):
        mode = Path(path).stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise OSError(errno.EINVAL, "it is a pipe or a device", url)
    stream: IO[bytes] = fs.open(path, "rb")
    return stream


def write(url: str, data: bytes) -> None:
    """Put a file so that readers see the old bytes or the new ones, never a part.

    Object stores do that by themselves; on local disk the bytes are written aside, flushed and renamed.
    """
    if is_local(url):
        target = Path(url)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.{os.getpid()}.partial")
        with aside.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(target)
        return
    fs, path = filesystem(url)
    fs.pipe_file(path, data)


def remove(url: str) -> None:
    """Remove a file or a whole folder if it is there."""
    fs, path = filesystem(url)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def sha256(url: str) -> tuple[str, int]:
    """SHA-256 (hex) and size in bytes of a file, read in blocks."""
    digest, size = hashlib.sha256(), 0
    with open_read(url) as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size
