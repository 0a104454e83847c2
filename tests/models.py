"""Models small enough for tests: networks of many forms, pretrained or with segmentation heads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hssl_dist.config.network import NetworkConfig
from hssl_dist.config.pretrain import ObjectiveConfig
from hssl_dist.networks.pretraining import build_pretraining_network, build_segmentation_network
from hssl_dist.networks.weights import ModelCard, class_count
from hssl_dist.records import Lineage
from tests.tiny_network import NETWORK

NETWORKS = {
    "isotropic": NetworkConfig(
        widths=(4, 6, 8),
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
        kernels=((3, 3, 3), (3, 3, 3), (3, 3, 3)),
        encoder_blocks=(1, 2, 2),
        decoder_blocks=(1, 1),
    ),
    "anisotropic": NetworkConfig(
        widths=(4, 6, 6, 8),
        strides=((1, 1, 1), (1, 2, 2), (2, 1, 3), (2, 2, 2)),
        kernels=((1, 3, 3), (1, 5, 3), (3, 3, 3), (3, 1, 3)),
        encoder_blocks=(1, 3, 2, 1),
        decoder_blocks=(1, 2, 3),
    ),
    "a stage that keeps the size": NetworkConfig(
        widths=(4, 4, 8),
        strides=((1, 1, 1), (1, 1, 1), (2, 2, 2)),
        kernels=((3, 3, 3), (3, 3, 3), (3, 3, 3)),
        encoder_blocks=(2, 1, 1),
        decoder_blocks=(2, 1),
    ),
    "two stages": NETWORK,
    "default": NetworkConfig(),
}
SMALL = NETWORKS["two stages"]
CLASSES = {1: "left", 3: "right"}
CT = {"rule": "ct", "clip_low": -120.0, "clip_high": 240.0, "offset": 40.0, "scale": 60.0}
MR = {"rule": "mr"}
LINEAGE = Lineage(config_hash="c" * 64, code_version="0.1.0", manifests={"phantoms": "m" * 64})


def recipe(
    *channels: Mapping[str, Any], spacing_mm: tuple[float, float, float] = (2.0, 1.0, 1.0)
) -> dict[str, Any]:
    """The dump of a recipe, as a card keeps it."""
    return {
        "version": 2,
        "spacing_mm": list(spacing_mm),
        "channels": [dict(channel) for channel in channels],
        "classes": {str(value): name for value, name in CLASSES.items()},
        "storage": {},
    }


def pretrained_model(
    network: NetworkConfig = SMALL, in_channels: int = 1
) -> tuple[ModelCard, dict[str, Tensor]]:
    """A pretrained model with all heads of both stages."""
    card = ModelCard(
        kind="pretrained",
        network=network.model_dump(mode="json"),
        in_channels=in_channels,
        tasks=("a", "b", "c"),
        groups=("x", "y"),
        lineage=LINEAGE,
    )
    built = build_pretraining_network(network, ObjectiveConfig(), 3, 2, in_channels)
    return card, _random_weights(built)


def segmentation_model(
    network: NetworkConfig = SMALL,
    in_channels: int = 1,
    classes: Mapping[int, str] = CLASSES,
    **changes: Any,
) -> tuple[ModelCard, dict[str, Tensor]]:
    """A segmentation model; its classes may skip values."""
    values: dict[str, Any] = {
        "kind": "segmentation",
        "network": network.model_dump(mode="json"),
        "in_channels": in_channels,
        "classes": dict(classes),
        "dataset": "phantoms",
        "lineage": LINEAGE,
    }
    built = build_segmentation_network(network, in_channels, class_count(classes))
    return ModelCard.model_validate(values | changes), _random_weights(built)


def _random_weights(network: nn.Module) -> dict[str, Tensor]:
    """No parameter at a special value, so that every one of them matters; the same each time."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.3, generator=generator)
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def write_placeholder(folder: Path, weights: bytes = b"weights") -> Path:
    """A folder that the registry takes for a model's; what is in it can be read as none."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder
