"""The product's arms of the loader's benchmark: its loader and reader, with and without the node's cache."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from benchmarks.loader_data import Draws, Patch, Prepared, Repeated, chosen_manifests
from hssl_dist.config.parts import CacheConfig
from hssl_dist.sampling import PretrainingLoader
from hssl_dist.store import Reader, open_reader

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    import numpy as np

    Delivery = Generator[tuple[tuple[Patch, ...], np.ndarray[Any, Any]]]
    Opened = tuple[Delivery, Callable[[], dict[str, int]]]

_FOR_EVER = 1 << 40


def with_cache(prepared: Prepared, draws: Draws) -> Opened:
    """The product's loader, volumes cached on the node's disk."""
    return _open(prepared, draws, CacheConfig(folder=f"{prepared.folder}/cache"))


def without_cache(prepared: Prepared, draws: Draws) -> Opened:
    """The product's loader, nothing kept: every region is read from the store."""
    return _open(prepared, draws, CacheConfig(max_bytes=0, chunk_bytes=0))


def _open(prepared: Prepared, draws: Draws, cache: CacheConfig) -> Opened:
    reader = open_reader(prepared.store, cache=cache)
    return _deliver(reader, prepared, draws), lambda: asdict(reader.figures())


def _deliver(reader: Reader, prepared: Prepared, draws: Draws) -> Delivery:
    steps = len(draws.patches) // draws.batch
    schedule = Repeated(chosen_manifests(prepared), draws.shape, draws.batch, steps)
    batches = PretrainingLoader(schedule, reader).batches(0, _FOR_EVER)
    try:
        for batch in batches:
            first = batch.step % steps * draws.batch
            yield draws.patches[first : first + draws.batch], batch.regions.numpy()[:, 0]
    finally:
        batches.close()
