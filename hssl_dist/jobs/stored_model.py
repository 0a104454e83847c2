"""A segmentation model that predicts cases of a store, for scores and for pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8

from hssl_dist.config.parts import TrackingConfig
from hssl_dist.jobs.segmenter import fetch_network
from hssl_dist.memory import within_memory
from hssl_dist.networks.unet import ResidualUNet
from hssl_dist.networks.weights import ModelCard, patch_size_of
from hssl_dist.records import CaseRecord, Shape
from hssl_dist.segmentation import keep_largest, predict
from hssl_dist.store import Reader


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A network on its device, its card, and the size z y x and the overlap of its windows.

    `uri` names the model exactly, `run_id` the MLflow run that made it, if one did.
    """

    uri: str
    run_id: str | None
    card: ModelCard
    network: ResidualUNet
    device: torch.device
    patch_size: Shape
    overlap: float

    def predict(self, reader: Reader, record: CaseRecord) -> UInt8[np.ndarray, "z y x"]:
        """Label values on the stored grid. Raises OutOfMemoryError if memory does not suffice."""
        background = [intensity.background for intensity in record.intensities]
        with within_memory(f"predicting case {record.id!r}", "fine-tune with a smaller training.patch_size"):
            image = reader.image(record)
            found = predict(self.network, image, self.patch_size, self.overlap, self.device, background)
            return keep_largest(found, self.card.keep_largest)


def load_stored_model(
    tracking: TrackingConfig, uri: str, device: torch.device, overlap: float
) -> StoredModel:
    """The segmentation model at a URI. Raises what `fetch_network` and `patch_size_of` do."""
    fetched, card, network = fetch_network(tracking, uri, device)
    return StoredModel(fetched.uri, fetched.run_id, card, network, device, patch_size_of(card), overlap)
