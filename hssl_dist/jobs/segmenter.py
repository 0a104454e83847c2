"""A fine-tuned model, ready for images: its network, and how images are prepared and seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from hssl_dist import files
from hssl_dist.config.parts import TrackingConfig
from hssl_dist.config.preprocess import StorageConfig
from hssl_dist.errors import CheckpointError
from hssl_dist.imaging import Recipe
from hssl_dist.imaging.recipe import RECIPE_VERSION
from hssl_dist.interchange.preparation import recipe_of_card
from hssl_dist.networks.unet import ResidualUNet
from hssl_dist.networks.weights import (
    WEIGHTS_NAME,
    ModelCard,
    build_from_card,
    load_model,
    load_state,
    patch_size_of,
)
from hssl_dist.records import KeepLargest, Scaling, Shape, content_hash
from hssl_dist.store.quantising import stored_dtype, stored_numbers
from hssl_dist.tracking import FetchedModel, fetch_model


@dataclass(frozen=True, slots=True)
class Segmenter:
    """A segmentation network on its device, with what its card says of the images it was trained on.

    `uri` names the model exactly; `key` identifies all of it that a prediction depends on.
    """

    uri: str
    key: str
    network: ResidualUNet
    device: torch.device
    recipe: Recipe
    modalities: tuple[str, ...]
    patch_size: Shape
    classes: dict[int, str]
    keep_largest: KeepLargest

    @property
    def rounding(self) -> Callable[[float], tuple[np.dtype[Any], Scaling]]:
        """The numbers in which prepared images were stored, and so seen in training."""
        storage = StorageConfig.model_validate(self.recipe.storage)
        return partial(stored_numbers, stored_dtype(storage))


def fetch_network(
    tracking: TrackingConfig, uri: str, device: torch.device
) -> tuple[FetchedModel, ModelCard, ResidualUNet]:
    """The segmentation model at a URI: its files, which go with their record, its card, and its network on a
    device. Raises what `fetch_model`, `load_model`, `build_from_card` and `load_state` do.
    """
    fetched = fetch_model(tracking, uri)
    card, state = load_model(fetched.folder)
    network = build_from_card(card)
    load_state(network, state)
    return fetched, card, network.to(device)


def load_segmenter(tracking: TrackingConfig, uri: str, device: torch.device) -> Segmenter:
    """The model at a URI, checked.

    Raises MissingError or TrackingError if it cannot be had, and CheckpointError for a pretrained model, one
    whose card does not say how images are prepared, or one that does not fit itself.
    """
    fetched, card, network = fetch_network(tracking, uri, device)
    recipe, patch_size = _preparation(card)
    sha256, _ = files.sha256(str(fetched.folder / WEIGHTS_NAME))
    facts = {
        "weights": sha256,
        "network": card.network,
        "recipe": recipe.hash,
        "modalities": card.modalities,
        "patch_size": patch_size,
        "keep_largest": card.keep_largest,
    }
    return Segmenter(
        fetched.uri,
        content_hash(facts),
        network,
        device,
        recipe,
        card.modalities,
        patch_size,
        card.classes,
        card.keep_largest,
    )


def _preparation(card: ModelCard) -> tuple[Recipe, Shape]:
    """The recipe of the model's dataset, and the size of the patches it was trained on."""
    recipe = recipe_of_card(card)
    if recipe is None or card.patch_size is None or not card.modalities:
        raise CheckpointError(
            "the model's card does not say how images are prepared for it (recipe, modalities, patch_size); "
            "fine-tune it again"
        )
    if recipe.version != RECIPE_VERSION:
        raise CheckpointError(
            f"the model's images were prepared by version {recipe.version} of the recipe, this is version "
            f"{RECIPE_VERSION}; preprocess its dataset and fine-tune it again"
        )
    if not card.in_channels == len(card.modalities) == len(recipe.channels):
        raise CheckpointError(
            f"the model takes {card.in_channels} channels, its card describes {len(card.modalities)} "
            f"modalities and {len(recipe.channels)} recipes; it is damaged: fine-tune it again"
        )
    return recipe, patch_size_of(card)
