"""Reading volumes, labels and regions of stored cases.

A backend reads boxes of arrays; everything else - the cache, scaling, padding, errors - is here and the same
for all of them, so they agree bit for bit.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from hssl_dist import files
from hssl_dist.config.parts import CacheConfig
from hssl_dist.errors import StoreError
from hssl_dist.records import CaseRecord, Region, Scaling
from hssl_dist.store import layout, objects
from hssl_dist.store.backend import Backend, Box, Pending, StoredArray
from hssl_dist.store.cache import VolumeCache, Warn, cache_folder, volume_key
from hssl_dist.store.cache_files import CachedVolume, VolumeForm
from hssl_dist.store.cropping import nearest_number, overlap, pad_around, write_values
from hssl_dist.store.figures import Counter, ReadFigures
from hssl_dist.store.quantising import Stored

if TYPE_CHECKING:
    from jaxtyping import Float32, Shaped, UInt8

Pairs = Sequence[tuple[CaseRecord, Region]]

_MOST_FILLS = 8  # volumes decoded into the cache at once; each has all its chunks in flight
_MOST_CROPPERS = 8
_ALONE_BYTES = 2 << 20  # of output, below which one thread is done before others would have started


@dataclass(frozen=True, slots=True)
class StoredForm:
    """What the numbers of some regions are: their type, and `(scale_factor, add_offset)` of each."""

    dtype: np.dtype[Any]
    scalings: Float32[np.ndarray, "pair 2"]


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
        """A box of one channel; beyond the volume the channel's background, as near as it can be stored."""
        ...

    def label_region(self, record: CaseRecord, region: Region) -> UInt8[np.ndarray, "z y x"]:
        """A box of the label, with 0 beyond the volume."""
        ...

    def fill(self, pairs: Pairs, out: Float32[np.ndarray, "pair z y x"]) -> None:
        """Write the region of every pair, all of one shape, into the rows of `out`, with all reads in flight
        at once where the backend can.
        """
        ...

    def fill_numbers(self, pairs: Pairs, out: Shaped[np.ndarray, "pair z y x"]) -> StoredForm:
        """Write the stored numbers of the region of every pair, all of one shape, into the rows of `out`, an
        array of two bytes a number; returns what is in them. Raises StoreError if they are not of one type.
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


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """A region of one channel (or of the label), and the row its numbers or values belong to."""

    record: CaseRecord
    array: str
    channel: int
    inside: Box
    """What of the region lies inside the volume; maybe nothing."""
    row: Stored
    target: Box
    """Where in the row that belongs; the rest has `background`."""
    background: float

    @property
    def box(self) -> Box:
        """The inside, in the stored array."""
        return self.in_array(self.inside)

    def in_array(self, box: Box) -> Box:
        """A box of the piece's channel, in the stored array."""
        return box if self.array == layout.LABEL_ARRAY else (slice(self.channel, self.channel + 1), *box)

    @property
    def stored_bytes(self) -> int:
        """Of the inside."""
        voxels: int = math.prod(part.stop - part.start for part in self.inside)
        return voxels * (1 if self.array == layout.LABEL_ARRAY else layout.IMAGE_ITEMSIZE)


Write = Callable[[_Piece, Stored, Scaling], None]
"""Puts the numbers of a piece's inside where they belong."""


class StoreReader:
    """The `Reader` over any backend, with or without a cache of volumes."""

    def __init__(self, root: str, backend: Backend, cache: VolumeCache | None) -> None:
        self._root, self._backend, self._cache = root, backend, cache
        self._counter = Counter()
        self._croppers = min(_MOST_CROPPERS, len(os.sched_getaffinity(0)))
        self._crops = ThreadPoolExecutor(self._croppers, thread_name_prefix="crop")
        # A volume keeps two cores busy by itself; only a network's latency is worth more of them.
        fills = max(1, self._croppers // 2) if files.is_local(root) else _MOST_FILLS
        self._fills = ThreadPoolExecutor(min(fills, _MOST_FILLS), thread_name_prefix="fill")

    def image(self, record: CaseRecord) -> Float32[np.ndarray, "channel z y x"]:
        """See `Reader`."""
        self._check_shape(record, layout.IMAGE_ARRAY)
        out = np.empty((len(record.modalities), *record.shape), np.float32)
        self._deliver([_of_image(record, _whole(record, c), row) for c, row in enumerate(out)], _values)
        return out

    def label(self, record: CaseRecord) -> UInt8[np.ndarray, "z y x"]:
        """See `Reader`."""
        self._check_shape(record, layout.LABEL_ARRAY)
        return self.label_region(record, _whole(record, 0))

    def region(self, record: CaseRecord, region: Region) -> Float32[np.ndarray, "z y x"]:
        """See `Reader`."""
        out = np.empty(region.shape, np.float32)
        self.fill([(record, region)], out[None])
        return out

    def label_region(self, record: CaseRecord, region: Region) -> UInt8[np.ndarray, "z y x"]:
        """See `Reader`."""
        out = np.empty(region.shape, np.uint8)
        inside, target = overlap(record.shape, region)
        self._deliver([_Piece(record, layout.LABEL_ARRAY, 0, inside, out, target, 0.0)], _numbers)
        return out

    def fill(self, pairs: Pairs, out: Float32[np.ndarray, "pair z y x"]) -> None:
        """See `Reader`."""
        pieces = [_of_image(record, region, row) for (record, region), row in zip(pairs, out, strict=True)]
        self._deliver(pieces, _values)

    def fill_numbers(self, pairs: Pairs, out: Shaped[np.ndarray, "pair z y x"]) -> StoredForm:
        """See `Reader`."""
        pieces = [_of_image(record, region, row) for (record, region), row in zip(pairs, out, strict=True)]
        forms: dict[_Piece, tuple[np.dtype[Any], Scaling]] = {}

        def write(piece: _Piece, stored: Stored, scaling: Scaling) -> None:
            forms[piece] = stored.dtype, scaling
            _numbers(piece, stored, scaling)

        self._deliver(pieces, write)
        dtypes = {dtype for dtype, _ in forms.values()}
        if len(dtypes) != 1:
            raise StoreError(
                f"{self._root} has volumes stored as {' and '.join(sorted(map(str, dtypes)))}, which one "
                "batch cannot hold; preprocess its datasets with one storage.dtype"
            )
        scalings = [forms[piece][1] for piece in pieces]
        table = [(scaling.scale_factor, scaling.add_offset) for scaling in scalings]
        return StoredForm(dtypes.pop(), np.array(table, np.float32))

    def figures(self) -> ReadFigures:
        """See `Reader`."""
        return self._counter.total + self._backend.fetched()

    # ----------------------------------------------------------------------------------------------- delivery

    def _deliver(self, pieces: Sequence[_Piece], write: Write) -> None:
        """Write all pieces: those of cached volumes first, while volumes that can be cached are decoded; the
        rest with all reads in flight at once.
        """
        if self._cache is None:
            self._count([], pieces)
            self._read_through(pieces, write)
            return
        self._cache.forget_evicted()
        ready: list[tuple[_Piece, CachedVolume]] = []
        absent: dict[str, list[_Piece]] = {}
        for piece in pieces:
            key = volume_key(piece.record, piece.array, piece.channel)
            volume = self._cache.get(key)
            if volume is not None and volume.values.shape == piece.record.shape:
                ready.append((piece, volume))
            else:
                absent.setdefault(key, []).append(piece)
        self._count([piece for piece, _ in ready], [piece for group in absent.values() for piece in group])
        filling = {
            self._fills.submit(self._add, self._cache, key, group[0]): group for key, group in absent.items()
        }
        self._crop(ready, write)
        uncached = []
        for future in as_completed(filling):
            if (volume := future.result()) is None:
                uncached += filling[future]
            else:
                self._crop([(piece, volume) for piece in filling[future]], write)
        self._read_through(uncached, write)

    def _add(self, cache: VolumeCache, key: str, piece: _Piece) -> CachedVolume | None:
        """The whole volume of a piece, from now on in the cache; None if it cannot be."""
        whole = piece.in_array(tuple(slice(0, side) for side in piece.record.shape))
        stored = self._open(piece.record, piece.array)
        with objects.explained(self._root, piece.record, piece.array):
            form = VolumeForm(stored.dtype, piece.record.shape, stored.scaling)
            in_array = tuple(part.stop - part.start for part in whole)
            return cache.add(key, form, lambda values: stored.read_into(whole, values.reshape(in_array)))

    def _check_shape(self, record: CaseRecord, array: str) -> None:
        """Raise StoreError before memory for a whole volume is taken on its record's word alone."""
        if self._cache is not None:
            volume = self._cache.get(volume_key(record, array, 0))
            if volume is not None and volume.values.shape == record.shape:
                return
        self._open(record, array)

    def _open(self, record: CaseRecord, array: str) -> StoredArray:
        """An array of a case. Raises StoreError if it is not of the shape that the record says."""
        with objects.explained(self._root, record, array):
            stored = self._backend.open(record, array)
        said = record.shape if array == layout.LABEL_ARRAY else (len(record.modalities), *record.shape)
        if stored.shape != said:
            raise StoreError(
                f"case {record.id!r} of {record.dataset!r}: its record says {said} voxels, its array {array} "
                f"has {stored.shape}; remove its commit record and preprocess the dataset again"
            )
        return stored

    def _read_through(self, pieces: Sequence[_Piece], write: Write) -> None:
        """Read pieces from the store, with all reads in flight, leaving nothing in the cache of volumes."""
        started = []
        for piece in pieces:
            stored = self._open(piece.record, piece.array)
            with objects.explained(self._root, piece.record, piece.array):
                started.append((piece, stored.scaling, stored.start(piece.box)))

        def finish(piece: _Piece, scaling: Scaling, pending: Pending) -> None:
            with objects.explained(self._root, piece.record, piece.array):
                values = pending()
            write(piece, values.reshape(values.shape[-3:]), scaling)

        self._run([functools.partial(finish, *args) for args in started], [piece.row for piece in pieces])

    def _crop(self, pieces: Sequence[tuple[_Piece, CachedVolume]], write: Write) -> None:
        jobs = [
            functools.partial(write, piece, volume.values[piece.inside], volume.scaling)
            for piece, volume in pieces
        ]
        self._run(jobs, [piece.row for piece, _ in pieces])

    def _run(self, jobs: Sequence[Callable[[], None]], rows: Sequence[Stored]) -> None:
        """Do all jobs, in several threads if what they write is worth it."""
        share = self._croppers if sum(row.nbytes for row in rows) >= _ALONE_BYTES else 1
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
                bytes_used=sum(piece.stored_bytes for piece in (*hits, *misses)),
                cache_hits=len(hits),
                cache_misses=len(misses) if self._cache else 0,
            )
        )


def _do_all(jobs: Sequence[Callable[[], None]]) -> None:
    for job in jobs:
        job()


def _whole(record: CaseRecord, channel: int) -> Region:
    return Region(record.dataset, record.id, channel, (0, 0, 0), record.shape)


def _of_image(record: CaseRecord, region: Region, row: Stored) -> _Piece:
    inside, target = overlap(record.shape, region)
    background = record.intensities[region.channel].background
    return _Piece(record, layout.IMAGE_ARRAY, region.channel, inside, row, target, background)


def _numbers(piece: _Piece, stored: Stored, scaling: Scaling) -> None:
    """The numbers as they are, whatever type of as many bytes the row has."""
    number = nearest_number(piece.background, stored.dtype, scaling)
    np.copyto(pad_around(piece.row.view(stored.dtype), piece.target, number), stored)


def _values(piece: _Piece, stored: Stored, scaling: Scaling) -> None:
    """The numbers' values, in float32."""
    number = nearest_number(piece.background, stored.dtype, scaling)
    value = np.empty(1, np.float32)
    write_values(np.array([number]), scaling, value)
    write_values(stored, scaling, pad_around(piece.row, piece.target, value[0]))
