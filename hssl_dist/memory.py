"""Memory that does not suffice: how torch and Python say it, and what the user is told."""

from __future__ import annotations

import errno
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
