"""Reading with zarr-python: the slow reference. With encoding.py the sole importer of zarr."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import zarr
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from hssl_dist import files
from hssl_dist.store import layout, objects
from hssl_dist.store.quantising import Scaling

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

    from hssl_dist.records import CaseRecord
    from hssl_dist.store.reader import Box, Pending, Stored


class ZarrBackend:
    """The reference `Backend`: opens the array anew for every read and keeps nothing."""

    def __init__(self, root: str) -> None:
        self._root = root

    def start(self, record: CaseRecord, array: str, box: Box) -> tuple[Pending, Scaling]:
        """See `Backend`. Reads at once."""
        metadata = objects.find(record, f"{array}/{layout.METADATA}")
        objects.fetch(self._root, record.dataset, metadata)
        url = files.join(layout.dataset_url(self._root, record.dataset), record.image_path)
        opened: Any = zarr.open_array(_NothingMissing(_open_store(url)), path=array, mode="r", zarr_format=3)
        scaling = Scaling(opened.attrs.get("scale_factor", 1.0), opened.attrs.get("add_offset", 0.0))
        values: Stored = opened[box]
        return lambda: values, scaling


class _NothingMissing(WrapperStore[Any]):
    """A store in which an absent object is an error: zarr-python would read it as zeros."""

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """The object's bytes. Raises ValueError if there is none."""
        found: Buffer | None = await self._store.get(key, prototype, byte_range)
        if found is None:
            raise ValueError(f"{key} is missing")
        return found


def _open_store(url: str) -> Store:
    return (
        LocalStore(url, read_only=True) if files.is_local(url) else FsspecStore.from_url(url, read_only=True)
    )
