"""Randomness of one sample, from one number.

Sample `index` of step `step` of a run owns one seed; each use of randomness (where the region lies, how a
view is turned, its noise, ...) draws from a stream of its own, named by its purpose. So a sample comes out
the same whatever the number of workers, the micro-batch it is in, or what else was drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt64
from numpy.random.bit_generator import ISeedSequence
from torch import Tensor

_WORD = 2**64 - 1


def sample_seed(seed: int, step: int, index: int) -> int:
    """The seed (63 bits) of sample `index` of the global batch of step `step` of a run seeded with `seed`."""
    return _digest(f"sample/{seed}/{step}/{index}", 8) >> 1


def stream(seed: int, purpose: str) -> np.random.Generator:
    """The random numbers of one seed for one purpose (counter-based: Philox)."""
    key: Any = _Key(_digest(f"{purpose}/{seed}", 16))  # numpy's stubs know SeedSequence alone
    return np.random.Generator(np.random.Philox(key))


class _Key(ISeedSequence):
    """A key for Philox as it is. `Philox(key=...)` is the same but asks the system for entropy first, which
    takes three times as long as all the rest.
    """

    def __init__(self, key: int) -> None:
        self._words = np.array([key & _WORD, key >> 64], np.uint64)

    def generate_state(self, n_words: int, dtype: object = np.uint32) -> UInt64[np.ndarray, " 2"]:  # noqa: ARG002
        return self._words


def uniforms(seeds: Sequence[int], purpose: str, count: int) -> Float64[np.ndarray, "batch count"]:
    """`count` numbers in [0, 1) for each seed."""
    rows = np.empty((len(seeds), count))
    for row, seed in zip(rows, seeds, strict=True):
        stream(seed, purpose).random(out=row)
    return rows


def normals(
    seeds: Sequence[int], purpose: str, shape: tuple[int, ...], device: torch.device
) -> Float[Tensor, "batch ..."]:
    """Standard normal numbers of the given shape for each seed, made on `device`.

    Equal seeds give equal numbers on one kind of device; CPU and CUDA differ.
    """
    noise = torch.empty((len(seeds), *shape), device=device)
    generator = torch.Generator(device)
    for row, seed in zip(noise, seeds, strict=True):
        generator.manual_seed(_digest(f"{purpose}/{seed}", 8) >> 1)
        row.normal_(generator=generator)
    return noise


def _digest(text: str, size_bytes: int) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=size_bytes).digest(), "little")
