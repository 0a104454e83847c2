"""The cases of a dataset that cannot be stored: remembered with their key, so that a case is tried again only
when its files or what is asked of them change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hssl_dist import store
from hssl_dist.records import Quarantined

if TYPE_CHECKING:
    from hssl_dist.jobs.sources import HashedCase


class Quarantine:
    """The quarantine of one dataset during a run: what is known from before, and what holds now."""

    def __init__(self, root: str, dataset: str) -> None:
        self._root, self._dataset = root, dataset
        self._before = store.read_quarantine(root, dataset)
        self._now: dict[str, Quarantined] = {}

    @property
    def cases(self) -> tuple[Quarantined, ...]:
        """The cases in quarantine now, sorted by id."""
        return tuple(self._now[case_id] for case_id in sorted(self._now))

    def holds(self, hashed: HashedCase, key: str) -> bool:
        """Whether the case was refused under this key before; it then stays in quarantine."""
        known = self._before.get(hashed.id)
        if known is None or known.key != key:
            return False
        self._now[hashed.id] = known
        return True

    def add(self, hashed: HashedCase, key: str, reason: str) -> None:
        """Put a case into quarantine; names of files can hold anything, so the reason is made one line."""
        quarantined = Quarantined(
            id=hashed.id,
            patient=hashed.case.patient,
            key=key,
            reason="".join(char if char.isprintable() else "?" for char in reason),
            sources=tuple(source.path for source in hashed.sources),
        )
        store.write_quarantined(self._root, self._dataset, quarantined)
        self._now[hashed.id] = quarantined

    def settle(self) -> None:
        """Release the cases that are no longer refused, or no longer there."""
        for case_id in sorted(set(self._before) - set(self._now)):
            store.release(self._root, self._dataset, case_id)
