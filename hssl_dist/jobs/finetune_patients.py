"""Whom a fine-tuning learns from: the parts of the split, and the patients whose labels it uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hssl_dist.config.finetune import FinetuneConfig
from hssl_dist.errors import ConfigError
from hssl_dist.records import CaseRecord, Manifest
from hssl_dist.sampling.splits import Split, label_order, label_subset, labelled_cases, split_manifest


@dataclass(frozen=True, slots=True)
class Patients:
    """All parts of the split, the training patients whose labels are used, and the cases to use."""

    split: Split
    labelled: tuple[str, ...]
    training_cases: Sequence[CaseRecord]
    validation_cases: Sequence[CaseRecord]

    def as_json(self, config: FinetuneConfig) -> dict[str, Any]:
        """What a model's card keeps of it, so that no later evaluation meets a training patient."""
        return {
            "config": config.split.model_dump(mode="json"),
            "labels": config.labels.model_dump(mode="json"),
            "labelled": list(self.labelled),
            "label_order": label_order(self.split.train, config.labels.seed),
            "train": list(self.split.train),
            "validation": list(self.split.validation),
            "test": list(self.split.test),
        }


def choose_patients(config: FinetuneConfig, manifest: Manifest) -> Patients:
    """By the config's split and share of the labels. Raises ConfigError if nothing is left to learn from."""
    if not manifest.header.classes:
        raise ConfigError(f"dataset {config.dataset!r} has no classes to learn; choose one with labels")
    split = split_manifest(manifest, config.split)
    if not split.train:
        raise ConfigError(
            f"dataset {config.dataset!r} has no labelled patient left for training; "
            "choose one with more labels, or lower split.test and split.validation"
        )
    labelled = label_subset(split.train, config.labels)
    return Patients(
        split, labelled, labelled_cases(manifest, labelled), labelled_cases(manifest, split.validation)
    )
