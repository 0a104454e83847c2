"""How an image becomes what the network reads, as far as the model's card, a dataset or the caller says."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from hssl_dist.config.network import NetworkConfig
from hssl_dist.errors import CheckpointError, ConfigError
from hssl_dist.imaging.recipe import Recipe
from hssl_dist.networks.weights import ModelCard
from hssl_dist.records import ManifestHeader, Shape

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
    recipe = header.recipe if header else card.recipe
    modalities = header.channels if header else card.modalities
    try:
        understood = Recipe.model_validate(recipe) if recipe else None
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        if header:
            raise ConfigError(
                f"the recipe of dataset {header.dataset!r} is not one of this version: {where}; "
                "preprocess it again"
            ) from error
        raise CheckpointError(
            f"the recipe in the model's card is not one of this version: {where}"
        ) from error
    return Preparation(understood, modalities, patch_size)


def check_patch(patch_size: Shape, network: NetworkConfig) -> None:
    """Raises ConfigError for a patch that does not divide or leaves one voxel in the deepest stage.

    Ours lets a single voxel through its norms; torch's own instance norm, which other tools use, refuses it.
    """
    reduction = network.reduction
    if any(size % factor for size, factor in zip(patch_size, reduction, strict=True)):
        raise ConfigError(
            f"patch_size {patch_size} is not a multiple of the network's reduction {reduction}; "
            "choose one that is"
        )
    if patch_size == reduction:
        raise ConfigError(
            f"patch_size {patch_size} leaves one voxel in the deepest stage, which instance norm refuses; "
            "choose a larger one"
        )


def default_patch(network: NetworkConfig) -> Shape:
    """A patch for which nothing is known: four voxels along each axis of the deepest stage."""
    z, y, x = network.reduction
    return _DEEPEST_VOXELS * z, _DEEPEST_VOXELS * y, _DEEPEST_VOXELS * x
