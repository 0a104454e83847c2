"""What a job computes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hssl_dist.errors import OutOfMemoryError

_REFUSED = "can't allocate memory"  # by torch on the CPU, which has no error of its own for it


def use_hardware(threads: int | None) -> torch.device:
    """The GPU if this process has one, else the CPU; `threads` limits torch's CPU threads if given."""
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def within_memory(what: str, remedy: str) -> Iterator[None]:
    """Inside, memory that does not suffice for `what` is an OutOfMemoryError that ends in the remedy."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_memory(error):
            raise
        raise OutOfMemoryError(f"not enough memory for {what}; {remedy}, or use a larger machine") from error


def _is_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or _REFUSED in str(error)
