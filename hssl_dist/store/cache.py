"""Decoded volumes on the node's own disk: one file each, mapped by all processes of the node.

<folder>/
  lock               held while room is made or a file renamed; its time of change tells of an eviction
  <key>.volume       a whole volume (see cache_files)
  <key>.partial      a volume being filled: its filler holds a lock on it, which the kernel drops at its death

A key is the hash of what is recorded of a volume's objects, so a rewritten case has another one.
Room is made before a volume is decoded, and unfinished files count. Volumes in use are not displaced: only
those not used since this cache was opened, or for an hour, least recently used first. So a working set
larger than the cache leaves some volumes out, and the others stay.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hssl_dist.store.cache_files import (
    CachedVolume,
    DamagedError,
    VolumeForm,
    map_for_writing,
    map_volume,
)
from hssl_dist.store.quantising import Stored

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hssl_dist.records import CaseRecord

_FORMAT = "1"  # part of every key
_IN_USE_S = 3600.0
_TOUCH_S = 5.0  # a use is noted on disk at most so often
_WAIT_S = 120.0  # for another process to fill a volume
_LOCK_S = 30.0  # for another process to make room
_POLL_S = 0.02
_REST_S = 10.0  # without attempts to fill, after one found no room
_MOST_RESERVE_BYTES = 1 << 30

Warn = Callable[[str], None]


def cache_folder(folder: str | None, environment: Mapping[str, str]) -> Path:
    """A cache's folder on this node: `~` and variables expanded; by default below the user's caches."""
    if folder is None:
        return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache", "hssl")
    return Path(os.path.expandvars(folder)).expanduser()


def volume_key(record: CaseRecord, array: str, channel: int) -> str:
    """What identifies the numbers of one channel: the recorded hashes of its array's objects."""
    prefix = f"{record.image_path}/{array}/"
    found = [f"{o.sha256} {o.path[len(prefix) :]}" for o in record.objects if o.path.startswith(prefix)]
    return hashlib.sha256("\n".join([_FORMAT, str(channel), *sorted(found)]).encode()).hexdigest()


def free_reserve(disk_bytes: int) -> int:
    """Bytes of a disk that a cache leaves free: a twentieth of it, but at most 1 GiB."""
    return min(_MOST_RESERVE_BYTES, disk_bytes // 20)


class VolumeCache:
    """The cache in `folder`, of at most `max_bytes`. Threads may share one.

    Nothing that is wrong with the folder or its disk is an error: volumes are then not cached, and `warn`
    is told once of each kind of trouble.
    """

    def __init__(self, folder: Path, max_bytes: int, warn: Warn | None = None) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._warn = warn or logging.getLogger(__name__).warning
        self._opened_ns = time.time_ns()
        self._mapped: dict[str, CachedVolume] = {}
        self._touched_s: dict[str, float] = {}
        self._evicted_ns = 0
        self._rest_until_s = 0.0
        self._told: set[str] = set()
        self._lock = threading.Lock()

    def get(self, key: str) -> CachedVolume | None:
        """A volume that is in the cache."""
        volume = self._mapped.get(key) or self._open(key)
        if volume is not None:
            self._touch(key)
        return volume

    def add(self, key: str, form: VolumeForm, decode: Callable[[Stored], None]) -> CachedVolume | None:
        """Let `decode` fill a volume, unless another process does or did so meanwhile, which is waited for.

        None if the volume cannot be cached now. Errors of `decode` are passed on, and leave nothing behind.
        """
        if time.monotonic() < self._rest_until_s or not self._fits(form.file_bytes(key)):
            return None
        with self._claim(key, form.file_bytes(key)) as descriptor:
            if descriptor is not None:
                values = map_for_writing(descriptor, form)
                decode(values)
                self._finish(key, descriptor, form, values)
        return self.get(key)

    def _path(self, key: str, kind: str = "volume") -> Path:
        return self.folder / f"{key}.{kind}"

    # ------------------------------------------------------------------------------------------------ mapping

    def _open(self, key: str) -> CachedVolume | None:
        path = self._path(key)
        try:
            volume = map_volume(path, key)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            self._warn(f"{path} is damaged: {error}; it is removed and filled anew")
            with suppress(OSError):
                path.unlink()
            return None
        except OSError as error:
            self._tell(f"{self.folder} cannot be read ({error.strerror}): volumes are read from the store")
            return None
        with self._lock:
            return self._mapped.setdefault(key, volume)

    def _touch(self, key: str) -> None:
        now_s = time.monotonic()
        if now_s - self._touched_s.get(key, -_TOUCH_S) >= _TOUCH_S:
            self._touched_s[key] = now_s
            with suppress(OSError):  # evicted this moment, or a folder that may only be read
                os.utime(self._path(key))

    def forget_evicted(self) -> None:
        """Let go of mappings of evicted files, which keep their space on disk; called before every batch."""
        evicted_ns = _changed_ns(self.folder / "lock")
        if evicted_ns == self._evicted_ns:
            return
        with self._lock:
            self._evicted_ns = evicted_ns
            for key, volume in list(self._mapped.items()):
                if _inode(self._path(key)) != volume.inode:
                    del self._mapped[key]
                    self._touched_s.pop(key, None)

    # ------------------------------------------------------------------------------------------------ filling

    @contextmanager
    def _claim(self, key: str, size: int) -> Iterator[int | None]:
        """The descriptor of the locked unfinished file, with its space taken; None if there is nothing to do
        or no room. What is unfinished at the end is removed.
        """
        descriptor = None
        try:
            descriptor = self._lock_partial(key)
            if descriptor is not None and not self._take_room(descriptor, size):
                self._rest(
                    f"{self.folder} is full of volumes in use (cache.max_bytes {self.max_bytes}, or its "
                    "disk); the others are read from the store region by region"
                )
                self._release(key, descriptor)
                descriptor = None
        except OSError as error:
            self._give_up(error)
            if descriptor is not None:
                self._release(key, descriptor)
                descriptor = None
        try:
            yield descriptor
        finally:
            if descriptor is not None:
                self._release(key, descriptor)

    def _release(self, key: str, descriptor: int) -> None:
        """Remove an unfinished file that is still there, then unlock it."""
        partial = self._path(key, "partial")
        if _inode(partial) == os.fstat(descriptor).st_ino:
            partial.unlink(missing_ok=True)
        os.close(descriptor)

    def _lock_partial(self, key: str) -> int | None:
        """The locked unfinished file; None once the whole one is there, or if it takes too long."""
        partial = self._path(key, "partial")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        give_up_s = time.monotonic() + _WAIT_S
        while time.monotonic() < give_up_s:
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o600)
            if _try_lock(descriptor):
                if self._path(key).exists():
                    partial.unlink(missing_ok=True)
                elif _inode(partial) == os.fstat(descriptor).st_ino:
                    return descriptor
            os.close(descriptor)
            if self._path(key).exists():
                return None
            time.sleep(_POLL_S)
        self._rest(f"another process has been filling a volume of {self.folder} for {_WAIT_S:.0f} s")
        return None

    def _finish(self, key: str, descriptor: int, form: VolumeForm, values: Stored) -> None:
        try:
            os.pwrite(descriptor, form.footer(key, values), form.values_bytes)
            os.utime(descriptor)
            with self._folder_lock():  # a file that is renamed while files are listed can be in neither place
                self._path(key, "partial").rename(self._path(key))
        except OSError as error:
            self._give_up(error)

    # --------------------------------------------------------------------------------------------------- room

    def _take_room(self, descriptor: int, size: int) -> bool:
        """Take `size` bytes for a file, evicting what that needs; False, and nothing evicted, if in vain."""
        with self._folder_lock():
            os.ftruncate(descriptor, 0)
            _remove_abandoned(self.folder)
            entries = list(_listing(self.folder))
            disk = os.statvfs(self.folder)
            reserve = free_reserve(disk.f_blocks * disk.f_frsize)
            missing = max(
                sum(status.st_size for _, status in entries) + size - self.max_bytes,
                size + reserve - disk.f_bavail * disk.f_frsize,
            )
            chosen = []
            for path, status in self._evictable(entries):
                if missing <= 0:
                    break
                chosen.append(path)
                missing -= status.st_size
            if missing > 0:
                return False
            for path in chosen:
                path.unlink(missing_ok=True)
            if chosen:
                now_ns = time.time_ns()
                os.utime(self.folder / "lock", ns=(now_ns, now_ns))
            os.posix_fallocate(descriptor, 0, size)  # a full disk would kill whoever writes to the mapping
        return True

    def _evictable(self, entries: list[tuple[Path, os.stat_result]]) -> Iterator[tuple[Path, os.stat_result]]:
        """Volumes not in use, the least recently used first."""
        unused_ns = max(self._opened_ns, time.time_ns() - int(_IN_USE_S * 1e9))
        for path, status in sorted(entries, key=lambda entry: entry[1].st_mtime_ns):
            if path.suffix == ".volume" and status.st_mtime_ns < unused_ns:
                yield path, status

    @contextmanager
    def _folder_lock(self) -> Iterator[None]:
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            give_up_s = time.monotonic() + _LOCK_S
            while not _try_lock(descriptor):
                if time.monotonic() > give_up_s:
                    raise TimeoutError(errno.ETIMEDOUT, f"its lock was held for {_LOCK_S:.0f} s")
                time.sleep(_POLL_S / 4)
            yield
        finally:
            os.close(descriptor)

    # --------------------------------------------------------------------------------------------- complaints

    def _fits(self, size: int) -> bool:
        if size > self.max_bytes:
            self._tell(
                f"a volume of {size} bytes is larger than the cache, cache.max_bytes {self.max_bytes}: "
                "it is read from the store"
            )
        return size <= self.max_bytes

    def _give_up(self, error: OSError) -> None:
        self._rest(f"{self.folder} cannot be written ({error.strerror}): volumes are read from the store")

    def _rest(self, text: str) -> None:
        """Attempt no filling for a while, so that trouble costs little."""
        self._rest_until_s = time.monotonic() + _REST_S
        self._tell(text)

    def _tell(self, text: str) -> None:
        with self._lock:
            if text in self._told:
                return
            self._told.add(text)
        self._warn(text)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_abandoned(folder: Path) -> None:
    """Remove unfinished files whose fillers are dead. Who opens one now finds it gone, and makes another."""
    for path, _ in _listing(folder):
        if path.suffix == ".partial":
            with suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDWR)
                if _try_lock(descriptor):
                    path.unlink(missing_ok=True)
                os.close(descriptor)


def _listing(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith((".volume", ".partial")):
                with suppress(FileNotFoundError):
                    yield Path(entry.path), entry.stat()


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
