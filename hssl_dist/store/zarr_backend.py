"""Reading with zarr-python: the slow reference. With encoding.py the sole importer of zarr."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from hssl_dist import files
from hssl_dist.records import Scaling
from hssl_dist.store import layout, objects
from hssl_dist.store.backend import Box, Pending, scaling_of
from hssl_dist.store.figures import Counter, ReadFigures
from hssl_dist.store.quantising import Stored

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

    from hssl_dist.records import CaseRecord


class ZarrBackend:
    """The reference `Backend`: opens the array anew for every read and keeps nothing."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._counter = Counter()

    def open(self, record: CaseRecord, array: str) -> _ZarrArray:
        """See `Backend`."""
        metadata = objects.find(record, f"{array}/{layout.METADATA}")
        objects.fetch(self._root, record.dataset, metadata)
        self._counter.add(ReadFigures(requests=1, bytes_fetched=metadata.size_bytes))
        url = files.join(layout.dataset_url(self._root, record.dataset), record.image_path)
        store = _NothingMissing(_open_store(url), self._counter)
        opened: Any = zarr.open_array(store, path=array, mode="r", zarr_format=3)
        return _ZarrArray(opened, opened.shape, opened.dtype, scaling_of(opened.attrs))

    def fetched(self) -> ReadFigures:
        """See `Backend`."""
        return self._counter.total


@dataclass(frozen=True, slots=True)
class _ZarrArray:
    """A `StoredArray` that reads at once."""

    opened: Any
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scaling: Scaling

    def start(self, box: Box) -> Pending:
        """See `StoredArray`."""
        values: Stored = self.opened[box]
        return lambda: values

    def read_into(self, box: Box, out: Stored) -> None:
        """See `StoredArray`."""
        out[...] = self.opened[box]


class _NothingMissing(WrapperStore[Any]):
    """A store that counts, and in which an absent object is an error: zarr-python would read it as zeros."""

    def __init__(self, store: Store, counter: Counter) -> None:
        super().__init__(store)
        self._counter = counter

    def _with_store(self, store: Store) -> _NothingMissing:
        return type(self)(store, self._counter)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """The object's bytes. Raises ValueError if there is none."""
        found: Buffer | None = await self._store.get(key, prototype, byte_range)
        if found is None:
            raise ValueError(f"{key} is missing")
        self._counter.add(ReadFigures(requests=1, bytes_fetched=len(found)))
        return found


def _open_store(url: str) -> Store:
    return (
        LocalStore(url, read_only=True) if files.is_local(url) else FsspecStore.from_url(url, read_only=True)
    )
