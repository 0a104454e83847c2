"""Reading volumes, labels and regions of stored cases.

A backend knows how to start reading a box of an array; everything else - decoding, padding, errors - is here
and the same for all of them, so they agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from hssl_dist.records import CaseRecord, Region, Shape
from hssl_dist.store import layout, objects
from hssl_dist.store.quantising import Scaling, dequantise

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8

Box = tuple[slice, ...]
Stored = np.ndarray[Any, np.dtype[Any]]
Pending = Callable[[], Stored]


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

    def regions(self, pairs: Sequence[tuple[CaseRecord, Region]]) -> list[Float32[np.ndarray, "z y x"]]:
        """`region` of every pair, in order, with all reads in flight at once where the backend can."""
        ...

    def fill(
        self, pairs: Sequence[tuple[CaseRecord, Region]], out: Float32[np.ndarray, "pair z y x"]
    ) -> None:
        """Write the region of every pair, all of one shape, into the rows of `out`; see `regions`."""
        ...


class Backend(Protocol):
    """One way to read arrays of a store."""

    def start(self, record: CaseRecord, array: str, box: Box) -> tuple[Pending, Scaling]:
        """Begin to read a box of an array; calling the result waits for the stored numbers.

        The box lies inside the array. Both steps raise CorruptError for metadata that is not as recorded and
        ValueError for anything else.
        """
        ...


def open_reader(
    root: str, kind: Literal["tensorstore", "zarr"] = "tensorstore", cache_bytes: int = 512 << 20
) -> Reader:
    """A reader of the store at `root`.

    `tensorstore` is the fast one: concurrent, with a cache of `cache_bytes` for decoded chunks. `zarr` is
    zarr-python, the slow reference that shares no decoding code with it; it reads any fsspec URL.
    """
    return StoreReader(root, _BACKENDS[kind](root, cache_bytes))


def _tensorstore(root: str, cache_bytes: int) -> Backend:
    from hssl_dist.store.tensorstore_backend import TensorstoreBackend

    return TensorstoreBackend(root, cache_bytes)


def _zarr(root: str, cache_bytes: int) -> Backend:  # noqa: ARG001  (the reference has no cache)
    from hssl_dist.store.zarr_backend import ZarrBackend

    return ZarrBackend(root)


_BACKENDS: dict[str, Callable[[str, int], Backend]] = {"tensorstore": _tensorstore, "zarr": _zarr}


@dataclass(frozen=True, slots=True)
class StoreReader:
    """The `Reader` over any backend."""

    root: str
    backend: Backend

    def image(self, record: CaseRecord) -> Float32[np.ndarray, "channel z y x"]:
        """See `Reader`."""
        everything = tuple(slice(0, side) for side in (len(record.modalities), *record.shape))
        pending, scaling = self._start(record, layout.IMAGE_ARRAY, everything)
        return dequantise(pending(), scaling)

    def label(self, record: CaseRecord) -> UInt8[np.ndarray, "z y x"]:
        """See `Reader`."""
        pending, _ = self._start(record, layout.LABEL_ARRAY, tuple(slice(0, side) for side in record.shape))
        return pending()

    def region(self, record: CaseRecord, region: Region) -> Float32[np.ndarray, "z y x"]:
        """See `Reader`."""
        return self._start_region(record, region)()

    def label_region(self, record: CaseRecord, region: Region) -> UInt8[np.ndarray, "z y x"]:
        """See `Reader`."""
        padded = np.zeros(region.shape, dtype=np.uint8)
        inside, target = _overlap(record.shape, region)
        if inside is not None:
            pending, _ = self._start(record, layout.LABEL_ARRAY, inside)
            padded[target] = pending()
        return padded

    def regions(self, pairs: Sequence[tuple[CaseRecord, Region]]) -> list[Float32[np.ndarray, "z y x"]]:
        """See `Reader`."""
        started = [self._start_region(record, region) for record, region in pairs]
        return [pending() for pending in started]

    def fill(
        self, pairs: Sequence[tuple[CaseRecord, Region]], out: Float32[np.ndarray, "pair z y x"]
    ) -> None:
        """See `Reader`."""
        for row, values in zip(out, self.regions(pairs), strict=True):
            row[...] = values

    def _start_region(self, record: CaseRecord, region: Region) -> Callable[[], Float32[np.ndarray, "z y x"]]:
        background = np.float32(record.intensities[region.channel].background)
        padded = np.full(region.shape, background, dtype=np.float32)
        inside, target = _overlap(record.shape, region)
        if inside is None:
            return lambda: padded
        channel = slice(region.channel, region.channel + 1)
        pending, scaling = self._start(record, layout.IMAGE_ARRAY, (channel, *inside))

        def finish() -> Float32[np.ndarray, "z y x"]:
            padded[target] = dequantise(pending()[0], scaling)
            return padded

        return finish

    def _start(self, record: CaseRecord, array: str, box: Box) -> tuple[Pending, Scaling]:
        """`Backend.start`, with errors that name the object behind them."""
        try:
            wait, scaling = self.backend.start(record, array, box)
        except ValueError as error:
            objects.explain(self.root, record, array, error)

        def finish() -> Stored:
            try:
                return wait()
            except ValueError as error:
                objects.explain(self.root, record, array, error)

        return finish, scaling


def _overlap(shape: Shape, region: Region) -> tuple[Box | None, Box]:
    """The part of a region inside the volume, in the volume's and in the region's own coordinates."""
    inside, target = [], []
    for side, start, size in zip(shape, region.start, region.shape, strict=True):
        low, high = max(0, start), min(side, start + size)
        if low >= high:
            return None, ()
        inside.append(slice(low, high))
        target.append(slice(low - start, high - start))
    return tuple(inside), tuple(target)
