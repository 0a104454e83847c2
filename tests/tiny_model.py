"""A segmentation model small enough for tests: random weights whose labels vary, and images to predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hssl_dist.imaging import ChannelRecipe, Recipe, write_nifti
from hssl_dist.networks.pretraining import build_segmentation_network
from hssl_dist.networks.unet import ResidualUNet
from hssl_dist.networks.weights import ModelCard, save_model
from hssl_dist.records import Lineage
from tests.tiny_network import NETWORK
from tests.tiny_store import CLASSES

PATCH_SIZE = (4, 8, 8)
SPACING_MM = (2.0, 1.0, 1.0)
LINEAGE = Lineage(config_hash="c" * 64, code_version="0.1.0")


def tiny_network(channels: int = 1, seed: int = 0) -> ResidualUNet:
    """Random weights; residual branches and norms are not at their initial zeros and ones."""
    torch.manual_seed(seed)
    network = build_segmentation_network(NETWORK, channels, 3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return network.eval()


def recipe_of(modalities: tuple[str, ...] = ("mr",), spacing_mm: Any = SPACING_MM) -> Recipe:
    """A recipe whose volumes are stored as the store does by default."""
    ct = ChannelRecipe(rule="ct", clip_low=-200, clip_high=300, offset=40, scale=60)
    channels = tuple(ct if name == "ct" else ChannelRecipe(rule="mr") for name in modalities)
    storage = {"dtype": "auto", "chunk": [32, 32, 32], "shard": [256, 256, 256]}
    return Recipe(spacing_mm=spacing_mm, channels=channels, classes=CLASSES, storage=storage)


def save_tiny_model(
    folder: Path, modalities: tuple[str, ...] = ("mr",), seed: int = 0, **changes: Any
) -> str:
    """Write such a model, its card changed; the folder."""
    values: dict[str, Any] = {
        "kind": "segmentation",
        "network": NETWORK.model_dump(mode="json"),
        "in_channels": len(modalities),
        "classes": CLASSES,
        "dataset": "tiny",
        "recipe": recipe_of(modalities).model_dump(mode="json"),
        "modalities": modalities,
        "patch_size": PATCH_SIZE,
        "lineage": LINEAGE,
    }
    card = ModelCard(**(values | changes))
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder, tiny_network(len(modalities), seed).state_dict(), card)
    return str(folder)


AFFINE = np.array([[-1.1, 0.1, 0, 20], [0.1, 1.2, 0, -30], [0, 0, 2.5, 7], [0, 0, 0, 1.0]])


def write_scan(path: Path, seed: int = 0, shape: Any = (20, 18, 7), affine: Any = AFFINE) -> str:
    """A scan (x y z): bright and dark structures in a body, air around it."""
    rng = np.random.default_rng(seed)
    image = rng.normal(60.0, 10.0, shape)
    image[4:10, 4:10, 2:5] += 80.0
    image[10:15, 9:14, 3:6] -= 50.0
    image[:2] = image[-2:] = rng.normal(1.0, 0.5, image[:2].shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, image.astype(np.int16), affine)
    return str(path)
