"""Reading in the tests: whole batches at once, and the slow reference of what stored numbers mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hssl_dist.records import CaseRecord, Region, Scaling
from hssl_dist.store import Reader


def read_regions(reader: Reader, pairs: Sequence[tuple[CaseRecord, Region]]) -> np.ndarray:
    """The regions of all pairs, of one shape, as `Reader.fill` delivers them."""
    out = np.full((len(pairs), *pairs[0][1].shape), np.nan, np.float32)
    reader.fill(pairs, out)
    return out


def dequantise(stored: np.ndarray, scaling: Scaling) -> np.ndarray:
    """Values of stored numbers, computed in float32 in three plain steps."""
    values = stored.astype(np.float32)
    values *= np.float32(scaling.scale_factor)
    values += np.float32(scaling.add_offset)
    return values
