"""Scans that stand in a store more than once: in several datasets, or in one under several patients.

Names mean nothing across challenges (each has a `patient001`), content does: two cases show the same scan if
a channel of one has the fingerprint of a channel of the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hssl_dist import store
from hssl_dist.errors import StoreError
from hssl_dist.records import Manifest

if TYPE_CHECKING:
    from hssl_dist.console import Console
    from hssl_dist.records import CaseRecord

_NAMED = 3


@dataclass(frozen=True, slots=True)
class Overlap:
    """Cases of `dataset`, each with the case of `other` (or of the same dataset) that shows the same scan."""

    dataset: str
    other: str
    pairs: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        named = ", ".join(f"{own} = {foreign}" for own, foreign in self.pairs[:_NAMED])
        named += f" and {len(self.pairs) - _NAMED} more" if len(self.pairs) > _NAMED else ""
        if self.other == self.dataset:
            return f"patients share scans ({named}): splits keep such patients together, as if they were one"
        return (
            f"scans are in the dataset {self.other}, too ({named}): training patients of one may be test "
            "patients of the other; pretrain with sampling.exclude_test, or leave one of the datasets out"
        )

    def summary(self) -> dict[str, Any]:
        """For the job's summary."""
        return {"dataset": self.other, "cases": [list(pair) for pair in self.pairs]}


def find_overlaps(
    root: str, manifests: Mapping[str, Manifest], console: Console
) -> dict[str, tuple[Overlap, ...]]:
    """For each of the manifests, what it shares with itself, the others and the rest of the store.

    Of the cases that show one scan, the first (by dataset and id) is paired with each of the others. Cases of
    the same patient of the same dataset may well be alike, and are left out.
    """
    pairs: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
    first: dict[str, CaseRecord] = {}
    for record in _records({**_others(root, manifests, console), **manifests}):
        for mark in record.fingerprints:
            known = first.setdefault(mark, record)
            if (known.dataset, known.patient) != (record.dataset, record.patient):
                pairs[known.dataset, record.dataset].add((known.id, record.id))
                if known.dataset != record.dataset:
                    pairs[record.dataset, known.dataset].add((record.id, known.id))
    return {
        name: tuple(
            Overlap(dataset, other, tuple(sorted(found)))
            for (dataset, other), found in sorted(pairs.items())
            if dataset == name
        )
        for name in manifests
    }


def _others(root: str, manifests: Mapping[str, Manifest], console: Console) -> dict[str, Manifest]:
    """Manifests of the store's other datasets; one that cannot be read is left out with a warning."""
    others: dict[str, Manifest] = {}
    for name in store.list_datasets(root):
        if name not in manifests:
            try:
                others[name] = store.read_whole_manifest(root, name)
            except StoreError as error:
                console.warn(f"{error}; its scans were not compared with those of the other datasets")
    return others


def _records(manifests: Mapping[str, Manifest]) -> Iterator[CaseRecord]:
    for _, manifest in sorted(manifests.items()):
        yield from manifest.cases
