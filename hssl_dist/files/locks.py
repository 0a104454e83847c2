"""One process at a time, on one machine: held until the block or the process ends, however it ends."""

from __future__ import annotations

import fcntl
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def only_one(lock: Path, *, wait: bool = True) -> Iterator[None]:
    """One process at a time is inside, of those that name the same file, which is made if need be.

    Raises BlockingIOError if another one is and it must not `wait`, OSError if there can be no such file.
    """
    with lock.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
