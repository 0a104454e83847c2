"""Memory that does not suffice: how torch and Python say it, and what the user is told. And memory that is
freed only to be taken again: keeping it.
"""

from __future__ import annotations

import ctypes
import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hssl_dist.errors import OutOfMemoryError

_REFUSALS = (
    "DefaultCPUAllocator",  # torch on the CPU, which has no error of its own for it
    "std::bad_alloc",
    "CUDA error: out of memory",  # of what is not the caching allocator's, such as pinned memory
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)

# Of glibc's malloc.h, and the values that its manual says it begins with.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_FIRST_TRIM_BYTES, _FIRST_MMAP_BYTES, _FIRST_MMAPS = 128 << 10, 128 << 10, 65536
_NEVER = -1

_keeping = threading.Lock()
_keepers = 0


@contextmanager
def freed_memory_kept(wanted: bool = True) -> Iterator[None]:
    """Inside, this process's C library keeps what is freed for what is allocated next, if it is glibc.

    As it begins, glibc maps what is large anew at each allocation and unmaps it when it is freed, so that the
    kernel clears every page of every activation again in every step. Kept, the process holds its peak until
    it leaves, which gives back what is free. It counts for all threads; another C library stays as it is.
    """
    libc = _glibc() if wanted else None
    if libc is None:
        yield
        return
    _count_keepers(libc, 1)
    try:
        yield
    finally:
        _count_keepers(libc, -1)


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  (who has it is glibc)
    except (OSError, AttributeError, TypeError):
        return None
    return libc


def _count_keepers(libc: ctypes.CDLL, change: int) -> None:
    """The first one that comes sets the library's limits, the last one that goes sets them back."""
    global _keepers
    with _keeping:
        before, _keepers = _keepers, _keepers + change
        if before and _keepers:
            return
        kept = change > 0
        libc.mallopt(_MMAP_MAX, 0 if kept else _FIRST_MMAPS)
        libc.mallopt(_TRIM_THRESHOLD, _NEVER if kept else _FIRST_TRIM_BYTES)
        if not kept:
            libc.mallopt(_MMAP_THRESHOLD, _FIRST_MMAP_BYTES)
            libc.malloc_trim(0)


@contextmanager
def within_memory(what: str, remedy: str) -> Iterator[None]:
    """Inside, memory that does not suffice for `what` is an OutOfMemoryError that ends in the remedy."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"not enough memory for {what}; {remedy}, or use a larger machine") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, NumPy, torch or the system says that memory does not suffice."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError):
        return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _REFUSALS)
    return isinstance(error, MemoryError)
