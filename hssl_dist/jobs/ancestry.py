"""What the model that a fine-tuning starts from, and those before it, have seen of the dataset's patients."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hssl_dist.config.parts import SplitConfig
from hssl_dist.errors import ConfigError, StoreError
from hssl_dist.jobs.starting import Start
from hssl_dist.networks.weights import ModelCard, PretrainedOn
from hssl_dist.records import Manifest
from hssl_dist.sampling.splits import Split, all_cases, patients_showing, scans_of
from hssl_dist.store import case_columns, list_datasets, read_manifest


@dataclass(frozen=True, slots=True)
class Ancestry:
    """What a fine-tuned model's card says of those before it, as `ModelCard` does; None is not known.

    `labels_used` has no label of the fine-tuning itself.
    """

    pretrained_on: PretrainedOn | None
    labels_used: Mapping[str, tuple[str, ...]] | None
    test_pretrained_on: tuple[str, ...] | None

    def with_labels(self, dataset: str, patients: Collection[str]) -> dict[str, tuple[str, ...]] | None:
        """`labels_used` of the fine-tuned model, which was trained on the labels of these patients too."""
        if self.labels_used is None:
            return None
        before = self.labels_used.get(dataset, ())
        return {**self.labels_used, dataset: tuple(sorted({*before, *patients}))}


def ancestry(
    root: str, manifest: Manifest, split: Split, start: Start, warn: Callable[[str], None]
) -> Ancestry:
    """What is behind the network at the start, with regard to a split of the dataset in the store at `root`.

    Raises ConfigError if it was trained on labels of patients who are now for validation or testing.
    """
    if start.card is None:
        return Ancestry(PretrainedOn(), {}, ())
    labels, images = _labels_used(start.card), start.card.pretrained_on
    used = set((labels or {}).get(manifest.dataset, ()))
    aside = {*split.validation, *split.test}
    if used & aside:
        raise ConfigError(
            f"{start.parent_model} was trained on the labels of {len(used & aside)} of the {len(aside)} "
            f"validation and test patients of dataset {manifest.dataset!r}; "
            f"{_remedy(start.card, manifest.dataset)}"
        )
    if images is None:
        return Ancestry(None, labels, None)
    manifests = {manifest.dataset: manifest, **_others(root, manifest.dataset, images, warn)}
    return Ancestry(images, labels, _shown(manifest, split.test, images.cases, manifests))


def leak_warning(summary: Mapping[str, Any]) -> str | None:
    """What is to be said of a fine-tuning by its summary, also one of a version that did not look."""
    count = summary.get("test_pretrained_on")
    if not count:
        return None
    return (
        f"{summary['start']} was pretrained on images, without labels, of {count} of the "
        f"{summary['test_patients']} test patients, which may flatter their scores; pretrain with this split "
        "as sampling.exclude_test to leave them out"
    )


def _labels_used(card: ModelCard) -> Mapping[str, tuple[str, ...]] | None:
    """Cards of before name their own labels, in their split, but not those of models before them."""
    if card.labels_used is not None or card.kind == "pretrained":
        return card.labels_used or {}
    if card.dataset is None or card.split is None:
        return None
    return {card.dataset: tuple(card.split["labelled"])}


def _remedy(card: ModelCard, dataset: str) -> str:
    if card.dataset != dataset or card.split is None:
        return "set other patients aside, or start from another model"
    default = SplitConfig().model_dump(mode="json")
    own: dict[str, Any] = {key: value for key, value in card.split["config"].items() if value != default[key]}
    words = " ".join(f"--split.{key} {value}" for key, value in own.items())
    return f"use its split ({words or 'the default one'}), or start from another model"


def _others(
    root: str, dataset: str, images: PretrainedOn, warn: Callable[[str], None]
) -> dict[str, Manifest]:
    """Those of the other datasets pretrained on that the store has; it warns of damaged ones."""
    manifests = {}
    for name in sorted(images.cases.keys() & set(list_datasets(root)) - {dataset}):
        try:
            manifests[name] = read_manifest(root, name)
        except StoreError as error:
            warn(f"{error}; its scans, pretrained on, were not compared with those of the test patients")
    return manifests


def _shown(
    manifest: Manifest,
    patients: Collection[str],
    seen: Mapping[str, Collection[str]],
    manifests: Mapping[str, Manifest],
) -> tuple[str, ...]:
    """Those of the patients of whom a case, or under whatever name its scan, is among `seen`; sorted."""
    own = set(seen.get(manifest.dataset, ()))
    found = {case.patient for case in all_cases(manifest, patients) if case.id in own}
    wanted = scans_of(manifest, patients)
    for name, other in manifests.items():
        known, columns = set(seen.get(name, ())), case_columns(other.cases)
        shared = np.isin(columns.scans, wanted)
        places = np.unique(columns.scan_cases[shared])
        drawn = [place for place in places.tolist() if other.cases[place].id in known]
        scans = columns.scans[shared & np.isin(columns.scan_cases, drawn)]
        found |= patients_showing(manifest, scans) & set(patients)
    return tuple(sorted(found))
