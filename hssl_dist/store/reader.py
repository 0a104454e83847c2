"""Reading volumes, labels and regions of stored cases.

A backend reads boxes of arrays; everything else - the cache, scaling, padding, errors - is here and the same
for all of them, so they agree bit for bit.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from hssl_dist.config.parts import CacheConfig
from hssl_dist.records import CaseRecord, Region, Scaling
from hssl_dist.store import layout, objects
from hssl_dist.store.backend import Backend, Box, Pending
from hssl_dist.store.cache import VolumeCache, Warn, cache_folder, volume_key
from hssl_dist.store.cache_files import CachedVolume, VolumeForm
from hssl_dist.store.cropping import overlap, pad_around, write_values
from hssl_dist.store.figures import Counter, ReadFigures
from hssl_dist.store.quantising import Stored

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8

Pairs = Sequence[tuple[CaseRecord, Region]]

_FILLS = 8  # volumes filled at once; each has all its chunks in flight
_MOST_CROPPERS = 8
_ALONE_BYTES = 2 << 20  # of output, below which one thread is done before others would have started


class Reader(Protocol):
    """Reads the cases of one store. Every method raises CorruptError, naming the object, if one is missing
    or has other bytes than were written; nothing lost ever reads as zeros.
    """

    def image(self, record: CaseRecord) -> Float32[np.ndarray, "channel z y x"]:
        """The whole volume."""
        ...

    def label(self, record: CaseRecord) -> UInt8[np.ndarray, "z y x"]:
        """The whole label. Raises StoreError if the case is not annotated."""
        ...

    def region(self, record: CaseRecord, region: Region) -> Float32[np.ndarray, "z y x"]:
        """A box of one channel, with the channel's background beyond the volume."""
        ...

    def label_region(self, record: CaseRecord, region: Region) -> UInt8[np.ndarray, "z y x"]:
        """A box of the label, with 0 beyond the volume."""
        ...

    def fill(self, pairs: Pairs, out: Float32[np.ndarray, "pair z y x"]) -> None:
        """Write the region of every pair, all of one shape, into the rows of `out`, with all reads in flight
        at once where the backend can.
        """
        ...

    def figures(self) -> ReadFigures:
        """What reading has cost since the reader was opened."""
        ...


def open_reader(
    root: str,
    kind: Literal["tensorstore", "zarr"] = "tensorstore",
    cache: CacheConfig | None = None,
    warn: Warn | None = None,
) -> Reader:
    """A reader of the store at `root`.

    `tensorstore` is the fast one, concurrent and cached as `cache` says; without one, only decoded chunks
    stay, in memory. `warn` is told, once, if volumes cannot be cached; the log is if it isn't given. `zarr`
    is zarr-python, the slow reference that shares no decoding code with it and caches nothing. Both read any
    fsspec URL.
    """
    return _KINDS[kind](root, cache, warn)


def _tensorstore(root: str, cache: CacheConfig | None, warn: Warn | None) -> Reader:
    from hssl_dist.store.tensorstore_backend import TensorstoreBackend

    settings = cache or CacheConfig(max_bytes=0)
    volumes = (
        VolumeCache(cache_folder(settings.folder, os.environ), settings.max_bytes, warn)
        if settings.max_bytes
        else None
    )
    return StoreReader(root, TensorstoreBackend(root, settings.chunk_bytes), volumes)


def _zarr(root: str, cache: CacheConfig | None, warn: Warn | None) -> Reader:  # noqa: ARG001
    from hssl_dist.store.zarr_backend import ZarrBackend

    return StoreReader(root, ZarrBackend(root), None)


_KINDS: dict[str, Callable[[str, CacheConfig | None, Warn | None], Reader]] = {
    "tensorstore": _tensorstore,
    "zarr": _zarr,
}


@dataclass(frozen=True, slots=True)
class _Piece:
    """A box of one channel (or of the label), inside the volume, and where its values belong."""

    record: CaseRecord
    array: str
    channel: int
    inside: Box
    out: Stored

    @property
    def box(self) -> Box:
        """The box in the stored array."""
        return self.in_array(self.inside)

    def in_array(self, box: Box) -> Box:
        """A box of the piece's channel, in the stored array."""
        return box if self.array == layout.LABEL_ARRAY else (slice(self.channel, self.channel + 1), *box)


class StoreReader:
    """The `Reader` over any backend, with or without a cache of volumes."""

    def __init__(self, root: str, backend: Backend, cache: VolumeCache | None) -> None:
        self._root, self._backend, self._cache = root, backend, cache
        self._counter = Counter()
        self._croppers = min(_MOST_CROPPERS, len(os.sched_getaffinity(0)))
        self._crops = ThreadPoolExecutor(self._croppers, thread_name_prefix="crop")
        self._fills = ThreadPoolExecutor(_FILLS, thread_name_prefix="fill")

    def image(self, record: CaseRecord) -> Float32[np.ndarray, "channel z y x"]:
        """See `Reader`."""
        out = np.empty((len(record.modalities), *record.shape), np.float32)
        inside = _whole(record)
        self._deliver(_Piece(record, layout.IMAGE_ARRAY, c, inside, row) for c, row in enumerate(out))
        return out

    def label(self, record: CaseRecord) -> UInt8[np.ndarray, "z y x"]:
        """See `Reader`."""
        out = np.empty(record.shape, np.uint8)
        self._deliver([_Piece(record, layout.LABEL_ARRAY, 0, _whole(record), out)])
        return out

    def region(self, record: CaseRecord, region: Region) -> Float32[np.ndarray, "z y x"]:
        """See `Reader`."""
        out = np.empty(region.shape, np.float32)
        self.fill([(record, region)], out[None])
        return out

    def label_region(self, record: CaseRecord, region: Region) -> UInt8[np.ndarray, "z y x"]:
        """See `Reader`."""
        out = np.empty(region.shape, np.uint8)
        self._deliver(_piece(record, region, layout.LABEL_ARRAY, 0, 0, out))
        return out

    def fill(self, pairs: Pairs, out: Float32[np.ndarray, "pair z y x"]) -> None:
        """See `Reader`."""
        self._deliver(
            piece
            for (record, region), row in zip(pairs, out, strict=True)
            for piece in _piece(
                record,
                region,
                layout.IMAGE_ARRAY,
                region.channel,
                record.intensities[region.channel].background,
                row,
            )
        )

    def figures(self) -> ReadFigures:
        """See `Reader`."""
        return self._counter.total + self._backend.fetched()

    # ----------------------------------------------------------------------------------------------- delivery

    def _deliver(self, pieces: Iterable[_Piece]) -> None:
        """Write all pieces: those of cached volumes first, while volumes that can be cached are decoded; the
        rest with all reads in flight at once.
        """
        if self._cache is None:
            uncached = list(pieces)
            self._count([], uncached)
            self._read_through(uncached)
            return
        self._cache.forget_evicted()
        ready: list[tuple[_Piece, CachedVolume]] = []
        absent: dict[str, list[_Piece]] = {}
        for piece in pieces:
            key = volume_key(piece.record, piece.array, piece.channel)
            if (volume := self._cache.get(key)) is not None:
                ready.append((piece, volume))
            else:
                absent.setdefault(key, []).append(piece)
        self._count([piece for piece, _ in ready], [piece for group in absent.values() for piece in group])
        filling = {
            self._fills.submit(self._add, self._cache, key, group[0]): group for key, group in absent.items()
        }
        self._crop(ready)
        uncached = []
        for future in as_completed(filling):
            if (volume := future.result()) is None:
                uncached += filling[future]
            else:
                self._crop([(piece, volume) for piece in filling[future]])
        self._read_through(uncached)

    def _add(self, cache: VolumeCache, key: str, piece: _Piece) -> CachedVolume | None:
        """The whole volume of a piece, from now on in the cache; None if it cannot be."""
        whole = piece.in_array(_whole(piece.record))
        with objects.explained(self._root, piece.record, piece.array):
            stored = self._backend.open(piece.record, piece.array)
            form = VolumeForm(stored.dtype, piece.record.shape, stored.scaling)
            in_array = tuple(part.stop - part.start for part in whole)
            return cache.add(key, form, lambda values: stored.read_into(whole, values.reshape(in_array)))

    def _read_through(self, pieces: Sequence[_Piece]) -> None:
        """Read pieces from the store, with all reads in flight, leaving nothing in the cache of volumes."""
        started = []
        for piece in pieces:
            with objects.explained(self._root, piece.record, piece.array):
                stored = self._backend.open(piece.record, piece.array)
                started.append((piece, stored.scaling, stored.start(piece.box)))

        def finish(piece: _Piece, scaling: Scaling, pending: Pending) -> None:
            with objects.explained(self._root, piece.record, piece.array):
                values = pending()
            write_values(values.reshape(piece.out.shape), scaling, piece.out)

        self._run([functools.partial(finish, *args) for args in started], [piece.out for piece in pieces])

    def _crop(self, pieces: Sequence[tuple[_Piece, CachedVolume]]) -> None:
        jobs = [
            functools.partial(write_values, volume.values[piece.inside], volume.scaling, piece.out)
            for piece, volume in pieces
        ]
        self._run(jobs, [piece.out for piece, _ in pieces])

    def _run(self, jobs: Sequence[Callable[[], None]], outs: Sequence[Stored]) -> None:
        """Do all jobs, in several threads if what they write is worth it."""
        share = self._croppers if sum(out.nbytes for out in outs) >= _ALONE_BYTES else 1
        futures = [self._crops.submit(_do_all, jobs[first::share]) for first in range(1, share)]
        try:
            _do_all(jobs[::share])
        finally:
            wait(futures)  # nobody may write into the caller's memory after this
        for future in futures:
            future.result()

    def _count(self, hits: Sequence[_Piece], misses: Sequence[_Piece]) -> None:
        self._counter.add(
            ReadFigures(
                regions=len(hits) + len(misses),
                bytes_used=sum(_stored_bytes(piece) for piece in (*hits, *misses)),
                cache_hits=len(hits),
                cache_misses=len(misses) if self._cache else 0,
            )
        )


def _do_all(jobs: Sequence[Callable[[], None]]) -> None:
    for job in jobs:
        job()


def _whole(record: CaseRecord) -> Box:
    return tuple(slice(0, side) for side in record.shape)


def _piece(
    record: CaseRecord, region: Region, array: str, channel: int, background: float, row: Stored
) -> Iterator[_Piece]:
    """What of a region lies inside the volume, if anything; the rest of the row is padded at once."""
    inside, target = overlap(record.shape, region)
    if inside is None:
        row[...] = background
    else:
        yield _Piece(record, array, channel, inside, pad_around(row, target, background))


def _stored_bytes(piece: _Piece) -> int:
    return piece.out.size * (1 if piece.array == layout.LABEL_ARRAY else layout.IMAGE_ITEMSIZE)
