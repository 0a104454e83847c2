"""A file read by ranges, a block ahead: few requests, and little more than a block in memory."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Fetch = Callable[[int, int], bytes]
"""The bytes `start` to `stop` of a file."""


def open_ranges(fetch: Fetch, size_bytes: int, block_bytes: int) -> io.BufferedReader:
    """A stream of a file of `size_bytes`. Small reads fetch a block, larger ones all they ask for."""
    return io.BufferedReader(_Ranges(fetch, size_bytes), block_bytes)


class _Ranges(io.RawIOBase):
    """Every read is one fetch."""

    def __init__(self, fetch: Fetch, size_bytes: int) -> None:
        super().__init__()
        self._fetch, self._size = fetch, size_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._position = base + offset
        return self._position

    def readall(self) -> bytes:
        start, self._position = self._position, max(self._position, self._size)
        return self._fetch(start, self._size) if start < self._size else b""

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        stop = min(self._size, self._position + len(view))
        if stop <= self._position:
            return 0
        data = self._fetch(self._position, stop)
        if len(data) != stop - self._position:
            raise OSError(f"the file ended early: {len(data)} of {stop - self._position} bytes came")
        view[: len(data)] = data
        self._position = stop
        return len(data)
