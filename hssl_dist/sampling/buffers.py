"""Memory for batches that is used again as soon as nobody holds the batch any more.

What is new to a process has to be cleared and mapped page by page, which takes longer than filling it.
"""

from __future__ import annotations

import math
import weakref

import numpy as np
import torch
from jaxtyping import Int16
from torch import Tensor


class Buffers:
    """Tensors of int16 of one shape; with `pin_memory`, those that a CUDA device can fetch by itself.

    At most `kept` that are not in use stay. Threads may share it.
    """

    def __init__(self, shape: tuple[int, ...], kept: int, *, pin_memory: bool = False) -> None:
        self._shape, self._kept, self._pin_memory = shape, kept, pin_memory
        self._free: list[memoryview] = []

    def take(self) -> Int16[Tensor, "*shape"]:
        """A tensor with any content. Its memory is free again when it and all views of it are gone."""
        if self._pin_memory:  # torch keeps pinned memory by itself, and knows when the device is done with it
            return torch.empty(self._shape, dtype=torch.int16, pin_memory=True)
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(2 * math.prod(self._shape), np.uint8).data
        array = np.frombuffer(memory, np.int16)  # every view of it holds it, however it was made
        weakref.finalize(array, self._give_back, memory).atexit = False
        return torch.from_numpy(array.reshape(self._shape))

    def _give_back(self, memory: memoryview) -> None:
        if len(self._free) < self._kept:
            self._free.append(memory)
