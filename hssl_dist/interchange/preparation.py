"""How an image becomes what the network reads, as far as the model's card, a dataset or the caller says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from hssl_dist.config.network import NetworkConfig
from hssl_dist.errors import CheckpointError, ConfigError, HsslError
from hssl_dist.imaging.recipe import Recipe
from hssl_dist.networks.weights import ModelCard
from hssl_dist.records import ManifestHeader, Shape
from hssl_dist.store.quantising import AUTO_DTYPE

_NAMED = 3
_DEEPEST_VOXELS = 4
"""Voxels of the deepest stage along each axis in a patch whose size nothing says (nnU-Net's own minimum)."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """What is known of the images; None where nothing says it.

    `modalities` has one entry per channel (`ct`, `mr`, ...), or none. `patch_size` is `z y x` in voxels.
    """

    recipe: Recipe | None
    modalities: tuple[str, ...]
    patch_size: Shape | None


def known_preparation(
    card: ModelCard, header: ManifestHeader | None = None, patch_size: Shape | None = None
) -> Preparation:
    """The dataset's recipe and channels if one is given, else those of the card.

    Raises CheckpointError or ConfigError for a recipe that this version does not understand.
    """
    recipe = _recipe_of_dataset(header) if header else recipe_of_card(card)
    return Preparation(recipe, header.channels if header else card.modalities, patch_size)


def recipe_of_card(card: ModelCard) -> Recipe | None:
    """How the model's images were prepared; None if its card does not say.

    Raises CheckpointError for a recipe that this version does not understand.
    """
    return _understood(card.recipe, CheckpointError, "in the model's card", "; fine-tune it again")


def check_prepared_alike(card: ModelCard, header: ManifestHeader, remedy: str) -> None:
    """Compare all that decides a dataset's stored numbers with what the model's images had.

    What the card does not say is not compared. Raises ConfigError with what differs and the remedy, and what
    `known_preparation` raises for recipes that differ and are not understood.
    """
    if differences := _differences(card, header):
        more = f" and {len(differences) - _NAMED} more" if len(differences) > _NAMED else ""
        raise ConfigError(
            f"dataset {header.dataset!r} is not preprocessed as the model's images were: "
            f"{', '.join(differences[:_NAMED])}{more}; {remedy}"
        )


def _differences(card: ModelCard, header: ManifestHeader) -> list[str]:
    if card.modalities and header.channels != card.modalities:
        return [f"channels {', '.join(header.channels)} instead of {', '.join(card.modalities)}"]
    if not card.recipe or header.recipe == card.recipe:
        return []
    own, datasets = recipe_of_card(card), _recipe_of_dataset(header)
    if own is None or datasets is None:
        return []
    expected, found = _deciding(own), _deciding(datasets)
    return [
        f"{key} {found.get(key)} instead of {expected.get(key)}"
        for key in expected | found
        if found.get(key) != expected.get(key)
    ]


def _deciding(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe decides stored numbers: chunks, shards and classes do not."""
    dtype = recipe.storage.get("dtype", "auto")
    return {
        "recipe version": recipe.version,
        "spacing_mm": recipe.spacing_mm,
        **{
            f"{key} of channel {index}": value
            for index, channel in enumerate(recipe.channels)
            for key, value in channel.model_dump().items()
        },
        "storage.dtype": AUTO_DTYPE if dtype == "auto" else dtype,
    }


def _recipe_of_dataset(header: ManifestHeader) -> Recipe | None:
    return _understood(header.recipe, ConfigError, f"of dataset {header.dataset!r}", "; preprocess it again")


def _understood(
    recipe: Mapping[str, Any] | None, error_type: type[HsslError], whose: str, remedy: str
) -> Recipe | None:
    """The recipe; None if there is none. Raises `error_type` for one that is not understood."""
    try:
        return Recipe.model_validate(recipe) if recipe else None
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise error_type(f"the recipe {whose} is not one of this version: {where}{remedy}") from error


def check_patch(patch_size: Shape, network: NetworkConfig) -> None:
    """Raises ConfigError for a patch that does not divide or leaves one voxel in the deepest stage.

    Ours lets a single voxel through its norms; torch's own instance norm, which other tools use, refuses it.
    """
    if misfit := network.misfit(patch_size, "patch_size"):
        raise ConfigError(f"{misfit}; choose one that is")
    if patch_size == network.reduction:
        raise ConfigError(
            f"patch_size {patch_size} leaves one voxel in the deepest stage, which instance norm refuses; "
            "choose a larger one"
        )


def default_patch(network: NetworkConfig) -> Shape:
    """A patch for which nothing is known: four voxels along each axis of the deepest stage."""
    z, y, x = network.reduction
    return _DEEPEST_VOXELS * z, _DEEPEST_VOXELS * y, _DEEPEST_VOXELS * x
