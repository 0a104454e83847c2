"""What a reader needs of a way to read arrays; the backends differ in nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hssl_dist.records import CaseRecord, Scaling
from hssl_dist.store.figures import ReadFigures
from hssl_dist.store.quantising import Stored

if TYPE_CHECKING:
    from collections.abc import Mapping

Box = tuple[slice, ...]
Pending = Callable[[], Stored]


class StoredArray(Protocol):
    """An array of a case, its metadata checked. Reading raises CorruptError for an object that is missing or
    has other bytes than recorded where the backend sees it, and ValueError for anything else.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Its axes: `channel z y x`, of a label `z y x`."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored numbers."""
        ...

    @property
    def scaling(self) -> Scaling:
        """What they mean."""
        ...

    def start(self, box: Box) -> Pending:
        """Begin to read a box, which lies inside the array; calling the result waits for the numbers."""
        ...

    def read_into(self, box: Box, out: Stored) -> None:
        """Read a box into `out`, of its shape, keeping nothing of it in memory."""
        ...


class Backend(Protocol):
    """One way to read the arrays of a store. Threads may share it."""

    def open(self, record: CaseRecord, array: str) -> StoredArray:
        """An array of a case. Raises CorruptError if its metadata is not as recorded."""
        ...

    def fetched(self) -> ReadFigures:
        """Requests to the store's storage and bytes fetched from it, since the backend was made."""
        ...


def scaling_of(attributes: Mapping[str, Any]) -> Scaling:
    """What an array's numbers mean, by its attributes."""
    return Scaling(attributes.get("scale_factor", 1.0), attributes.get("add_offset", 0.0))
