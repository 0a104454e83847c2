"""Where a pretrained encoder puts the cases of all datasets: pooled features of a region each, projected."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64

from hssl_dist.config.parts import StoreConfig, TrackingConfig
from hssl_dist.errors import CheckpointError
from hssl_dist.networks.pretraining import pool
from hssl_dist.networks.unet import ResidualEncoder
from hssl_dist.networks.weights import load_model, load_state, network_config
from hssl_dist.records import TISSUE, CaseRecord, Region, Shape
from hssl_dist.report.study import EmbeddingMap
from hssl_dist.store import open_reader, read_manifests
from hssl_dist.tracking import fetch_model
from hssl_dist.training.projection import neighbour_accuracy, principal_plane

_ENCODER = "encoder."
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Embedded:
    """A row of features per case, with its task and its patient (by dataset: names may be in two)."""

    features: Float64[np.ndarray, "case d"]
    tasks: tuple[str, ...]
    patients: tuple[str, ...]


def embedding_map(
    title: str,
    model: str,
    datasets: Sequence[str],
    *,
    store: StoreConfig,
    tracking: TrackingConfig,
    patch_size: Shape,
    device: torch.device,
    neighbours: int = 5,
) -> EmbeddingMap:
    """The map of one pretrained model over all cases of some datasets.

    `patch_size` is that of its pretraining. Raises CheckpointError for a model without an encoder that fits,
    and the errors of reading models and manifests.
    """
    encoder = load_encoder(tracking, model).to(device)
    embedded = embed(encoder, datasets, store, patch_size, device)
    points, shares = principal_plane(embedded.features)
    accuracy, chance = neighbour_accuracy(embedded.features, embedded.tasks, embedded.patients, neighbours)
    by_task = {
        task: [(float(x), float(y)) for (x, y), of in zip(points, embedded.tasks, strict=True) if of == task]
        for task in sorted(set(embedded.tasks))
    }
    return EmbeddingMap(title, by_task, shares, neighbours, accuracy, chance)


def load_encoder(tracking: TrackingConfig, model: str) -> ResidualEncoder:
    """The encoder of a pretrained model, ready to be used."""
    fetched = fetch_model(tracking, model)
    card, state = load_model(fetched.folder)
    weights = {name.removeprefix(_ENCODER): part for name, part in state.items() if name.startswith(_ENCODER)}
    if not weights or card.in_channels != 1:
        raise CheckpointError(f"{model} has no encoder of one channel; give a pretrained model")
    with torch.device("meta"):
        encoder = ResidualEncoder(network_config(card), card.in_channels)
    load_state(encoder, weights)
    return encoder.eval()


def embed(
    encoder: ResidualEncoder,
    datasets: Sequence[str],
    store: StoreConfig,
    patch_size: Shape,
    device: torch.device,
) -> Embedded:
    """The deepest features, pooled as pretraining's heads read them, of a region per case.

    The first channel only, as in pretraining. Cases stand in the order of the datasets and of their ids.
    """
    reader = open_reader(store.url)
    manifests = read_manifests(store.url, list(datasets))
    records = [record for name in datasets for record in manifests[name].cases]
    rows = []
    for first in range(0, len(records), _AT_ONCE):
        some = records[first : first + _AT_ONCE]
        pairs = [(record, central_region(record, patch_size)) for record in some]
        images = np.empty((len(pairs), *patch_size), np.float32)
        reader.fill(pairs, images)
        with torch.inference_mode():
            features = encoder(torch.from_numpy(images)[:, None].to(device))[-1]
            rows.append(pool(features).double().cpu().numpy())
    return Embedded(
        np.concatenate(rows),
        tuple(record.task for record in records),
        tuple(f"{record.dataset}/{record.patient}" for record in records),
    )


def central_region(record: CaseRecord, patch_size: Shape) -> Region:
    """The box around the median of the recorded tissue, or of the volume without any; it stays inside the
    volume on each axis that is long enough and is centred on the others.
    """
    voxels = record.foreground.get(TISSUE)
    centre = np.median(voxels, axis=0) if voxels else np.array(record.shape) / 2.0
    start = []
    for place, size, side in zip(centre.tolist(), patch_size, record.shape, strict=True):
        room = side - size
        start.append(room // 2 if room < 0 else min(max(round(place) - size // 2, 0), room))
    z, y, x = start
    return Region(record.dataset, record.id, 0, (z, y, x), patch_size)
