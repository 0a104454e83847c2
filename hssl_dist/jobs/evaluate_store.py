"""A fine-tuned model and a store: what the model predicts for the patients that were set aside.

On the stored grid: the prediction is compared with the label as it was oriented, resampled and cropped by
preprocessing, not with the source file's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32

from hssl_dist.config.evaluate import EvaluateConfig
from hssl_dist.errors import ConfigError
from hssl_dist.interchange.preparation import check_prepared_alike
from hssl_dist.jobs.evaluate_inputs import Example
from hssl_dist.jobs.evaluate_patients import choose
from hssl_dist.jobs.stored_model import load_stored_model
from hssl_dist.networks.weights import ModelCard
from hssl_dist.records import Manifest
from hssl_dist.store import open_reader, read_manifest

SET = "model"
"""Name of the only set of predictions."""

_REMEDY = (
    "`predict` prepares images the model's own way, and `evaluate --predictions` scores what it predicts: "
    "give them the source files"
)

_CHANGED = (
    "dataset {!r} has changed since the model was trained; the patients scored are those set aside then"
)


class StoredInputs:
    """The labelled cases of a part of the patients, predicted when they are asked for.

    Raises MissingError for a model, dataset or patient that is not there, ConfigError for a dataset that
    does not suit the model, CheckpointError for a model that cannot segment.
    """

    grid: Literal["stored", "original"] = "stored"
    sets = (SET,)

    def __init__(self, config: EvaluateConfig, model: str, device: torch.device) -> None:
        self._model = load_stored_model(config.tracking, model, device, config.overlap)
        self.card, self.uri, self.run_id = self._model.card, self._model.uri, self._model.run_id
        self.part = config.part
        self.manifest = read_manifest(config.store.url, _dataset_of(config, self.card))
        _check_suits(self.card, self.manifest)
        self._chosen = choose(config.part, self.card, self.manifest, config.store.url)
        self._records = {record.id: record for record in self._chosen.cases}
        self._reader = open_reader(config.store.url)
        self.classes = self.card.classes
        self.cases = tuple(self._records)

    @property
    def title(self) -> str:
        """The model and what it is scored on."""
        patients = "all labelled" if self.part == "all" else f"the {self.part}"
        return f"{self.uri} on {patients} patients of {self.manifest.dataset}"

    @property
    def scored(self) -> str:
        """The title, which names the model and the patients exactly."""
        return self.title

    @property
    def patients(self) -> tuple[str, ...]:
        """Whose cases they are, sorted."""
        return tuple(sorted({record.patient for record in self._records.values()}))

    @property
    def warnings(self) -> Sequence[str]:
        """A dataset that is no longer the one trained on, patients left out, what could not be checked."""
        trained_on = self.card.lineage.manifests.get(self.manifest.dataset)
        changed = trained_on is not None and trained_on != self.manifest.sha256
        return (*((_CHANGED.format(self.manifest.dataset),) if changed else ()), *self._chosen.warnings)

    @property
    def lineage(self) -> dict[str, Any]:
        """The model, what it was made from, the manifest it is scored on, and how many patients are left out
        because it was trained or validated on them (None: not known).
        """
        return {
            "model": self.uri,
            "run_id": self.run_id,
            "model_lineage": self.card.lineage.model_dump(mode="json"),
            "dataset": self.manifest.dataset,
            "manifest": self.manifest.sha256,
            "part": self.part,
            "patients_left_out": self._chosen.left_out,
            "overlap": self._model.overlap,
        }

    def examples(self) -> Iterator[Example]:
        """All cases, one volume in memory at a time."""
        return map(self.example, self.cases)

    def example(self, case: str) -> Example:
        """One case, predicted."""
        record = self._records[case]
        label, prediction = self._reader.label(record), self._model.predict(self._reader, record)
        return Example(case, record.patient, label, {SET: prediction}, record.geometry.spacing_mm)

    def image(self, case: str) -> Float32[np.ndarray, "z y x"]:
        """The first channel, as stored."""
        channel: Float32[np.ndarray, "z y x"] = self._reader.image(self._records[case])[0]
        return channel


def _dataset_of(config: EvaluateConfig, card: ModelCard) -> str:
    name = config.dataset or card.dataset
    if name is None:
        raise ConfigError("the model does not say what dataset it is for; name one with --dataset")
    return name


def _check_suits(card: ModelCard, manifest: Manifest) -> None:
    header = manifest.header
    if len(header.channels) != card.in_channels:
        raise ConfigError(
            f"dataset {header.dataset!r} has {len(header.channels)} channels, the model takes "
            f"{card.in_channels}; evaluate it on a dataset like the one it was trained on, {card.dataset!r}"
        )
    if header.classes != card.classes:
        raise ConfigError(
            f"dataset {header.dataset!r} has the classes {header.classes}, the model {card.classes}; "
            f"evaluate it on a dataset like the one it was trained on, {card.dataset!r}"
        )
    check_prepared_alike(card, header, _REMEDY)
