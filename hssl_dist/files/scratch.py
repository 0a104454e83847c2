"""Compressed archives, decompressed once per node into a scratch file that is read in place like any tar.

The file has a name of ours, in a folder of this user's alone below the temporary folder (`TMPDIR`). It is
there as long as a process uses it: each holds a shared lock, the last removes it when it ends, and what
killed processes left behind is removed by the next that needs any.
"""

from __future__ import annotations

import atexit
import fcntl
import gzip
import hashlib
import os
import shutil
import tempfile
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import IO

from hssl_dist.errors import ConfigError, StorageError
from hssl_dist.files.locks import only_one

_BLOCK_BYTES = 4 << 20
_MAX_GROWTH = 100
"""Volumes grow a few times; a hundred times is a bomb."""
_FREE_BYTES = 256 << 20
"""What is left free on the scratch disk."""
_RELEASE_TIMEOUT_S = 2.0
_LOCK = "lock"


def decompressed(stream: IO[bytes], name: str, version: str) -> Path:
    """The path of a gzip file's content, which is this process's to read until it ends.

    `version` tells one state of the file from another. Raises ConfigError if it is damaged, cut off or a
    bomb, and StorageError if the scratch disk is full.
    """
    folder = Path(tempfile.gettempdir()) / f"hssl-scratch-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise ConfigError(f"{folder} belongs to another user; set TMPDIR to a folder of your own")
    path = folder / f"{hashlib.sha256(f'{name} {version}'.encode()).hexdigest()[:32]}.tar"
    with only_one(folder / _LOCK):
        _sweep(folder)
        if not path.exists():
            _fill(path, stream, name)
        held = path.open("rb")
        fcntl.flock(held, fcntl.LOCK_SH)
    atexit.register(_release, path, held)
    return path


def _sweep(folder: Path) -> None:
    """Remove what no process holds."""
    for path in folder.glob("*.tar*"):
        with path.open("rb") as stream, suppress(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _release(path: Path, held: IO[bytes]) -> None:
    """Remove the file unless others go on holding it."""
    deadline_s = time.monotonic() + _RELEASE_TIMEOUT_S
    while time.monotonic() < deadline_s:  # workers that were told to end may take a moment
        with suppress(BlockingIOError), only_one(path.parent / _LOCK, wait=False):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            break
        time.sleep(0.1)
    held.close()


def _fill(path: Path, stream: IO[bytes], name: str) -> None:
    aside = path.with_suffix(".tar.partial")
    try:
        with aside.open("xb") as target:
            os.chmod(target.fileno(), 0o600)  # noqa: PTH101  (an open file has no path method)
            _decompress(stream, target, name)
        aside.replace(path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ConfigError(f"{name} is damaged or cut off: {error}; fetch it again") from None
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{name} cannot be decompressed to {path.parent}: {error}; set TMPDIR") from error
    finally:
        aside.unlink(missing_ok=True)


def _decompress(stream: IO[bytes], target: IO[bytes], name: str) -> None:
    """All of a gzip file, its checksums verified."""
    written_bytes = 0
    with gzip.GzipFile(fileobj=stream) as source:
        while block := source.read(_BLOCK_BYTES):
            written_bytes += len(block)
            if written_bytes > _MAX_GROWTH * max(stream.tell(), _BLOCK_BYTES // _MAX_GROWTH):
                raise ConfigError(f"{name} grows more than {_MAX_GROWTH} times when decompressed; refused")
            if shutil.disk_usage(target.name).free < _FREE_BYTES:
                raise StorageError(f"{name}: no room left at {target.name}; set TMPDIR to a larger disk")
            target.write(block)
