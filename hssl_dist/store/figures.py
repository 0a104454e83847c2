"""What reading cost: counters of a reader."""

from __future__ import annotations

import threading
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class ReadFigures:
    """Counters of one reader since it was opened; the difference of two is what happened in between.

    - `regions`: boxes delivered, of one channel or of a label; a whole volume counts as one box per channel
    - `bytes_used`: stored bytes of the voxels delivered, padding left out
    - `bytes_fetched`, `requests`: what was read from the store's own storage, and in how many ranges or GETs
    - `cache_hits`, `cache_misses`: boxes cut from a cached volume that was there, and the others; both 0
      without a cache
    """

    regions: int = 0
    bytes_used: int = 0
    bytes_fetched: int = 0
    requests: int = 0
    cache_hits: int = 0
    cache_misses: int = 0

    def __add__(self, other: ReadFigures) -> ReadFigures:
        return ReadFigures(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: ReadFigures) -> ReadFigures:
        return ReadFigures(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))


class Counter:
    """A sum of figures that several threads add to."""

    def __init__(self) -> None:
        self._sum = ReadFigures()
        self._lock = threading.Lock()

    def add(self, figures: ReadFigures) -> None:
        """Count so much more."""
        with self._lock:
            self._sum += figures

    @property
    def total(self) -> ReadFigures:
        """All that was counted."""
        return self._sum
