"""The product's arms of the loader's benchmark: its loader and reader, with and without the node's cache.

The product delivers stored numbers, two bytes a voxel, which the device makes float32. The peers deliver
float32; `with_cache_as_float32` does so too, on the same cores as everything else.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.loader_data import Draws, Patch, Prepared, Repeated, chosen_manifests
from hssl_dist.config.parts import CacheConfig
from hssl_dist.sampling import PretrainingLoader
from hssl_dist.store import Reader, open_reader

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from hssl_dist.sampling import Regions

    Delivery = Generator[tuple[tuple[Patch, ...], Regions | np.ndarray[Any, Any]]]
    Opened = tuple[Delivery, Callable[[], dict[str, int]]]

_FOR_EVER = 1 << 40


def with_cache(prepared: Prepared, draws: Draws) -> Opened:
    """The product's loader, volumes cached on the node's disk."""
    return _open(prepared, draws, CacheConfig(folder=f"{prepared.folder}/cache"))


def with_cache_as_float32(prepared: Prepared, draws: Draws) -> Opened:
    """The same, and each batch made float32 by the processor."""
    delivery, figures = with_cache(prepared, draws)
    return _as_float32(delivery), figures


def without_cache(prepared: Prepared, draws: Draws) -> Opened:
    """The product's loader, nothing kept: every region is read from the store."""
    return _open(prepared, draws, CacheConfig(max_bytes=0, chunk_bytes=0))


def _open(prepared: Prepared, draws: Draws, cache: CacheConfig) -> Opened:
    reader = open_reader(prepared.store, cache=cache)
    return _deliver(reader, prepared, draws), lambda: asdict(reader.figures())


def _as_float32(delivery: Delivery) -> Delivery:
    with closing(delivery):
        for patches, regions in delivery:
            yield patches, float32(regions)


def float32(delivered: Regions | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The values of what an arm delivered."""
    return delivered if isinstance(delivered, np.ndarray) else delivered.values().numpy()


def _deliver(reader: Reader, prepared: Prepared, draws: Draws) -> Delivery:
    steps = len(draws.patches) // draws.batch
    schedule = Repeated(chosen_manifests(prepared), draws.shape, draws.batch, steps)
    batches = PretrainingLoader(schedule, reader).batches(0, _FOR_EVER)
    try:
        for batch in batches:
            first = batch.step % steps * draws.batch
            yield draws.patches[first : first + draws.batch], batch.regions
    finally:
        batches.close()
