"""Models on disk: a folder with `model.safetensors` and `model.json`.

The JSON file has the model's card, the size and SHA-256 of the weights, and a SHA-256 of all this; it is
written last, so a folder without it is no model. Nothing in it is code.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import safetensors.torch
import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError

from hssl_dist import files
from hssl_dist.config.network import NetworkConfig
from hssl_dist.errors import CheckpointError, CorruptError
from hssl_dist.files.sealed_json import read_sealed, sealed
from hssl_dist.networks.pretraining import build_segmentation_network
from hssl_dist.records import KeepLargest, Lineage, Record, Shape

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from hssl_dist.networks.unet import ResidualUNet

WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "model.json"
_MOST_CHANNELS = 4096
_LARGEST_LABEL = 255


class PretrainedOn(Record):
    """The images of a pretraining: ids of its cases by dataset, and the dump of the SplitConfig whose test
    patients it left out, if it did.
    """

    cases: dict[str, tuple[str, ...]] = Field(default={})
    exclude_test: dict[str, Any] | None = None


class ModelCard(Record):
    """What is needed to rebuild a model, to use it and to tell where it comes from.

    `network` is the dump of its NetworkConfig; `classes` names the label values of a segmentation model;
    `tasks` and `groups` the hierarchy of a pretrained one. `recipe` (the dump of its dataset's Recipe),
    `modalities` of its channels and `patch_size` are what preparing an image for a segmentation model takes;
    `keep_largest` says of what only the largest component of a prediction stays.

    `pretrained_on` are the images, and `labels_used` the patients by dataset whose labels, that the model and
    those before it were trained on; `test_pretrained_on` are the test patients of `split` of whom an image is
    among those. None is not known: cards of before do not say.
    """

    kind: Literal["pretrained", "segmentation"]
    network: dict[str, Any]
    in_channels: Annotated[int, Field(ge=1, le=_MOST_CHANNELS)]
    classes: dict[Annotated[int, Field(ge=1, le=_LARGEST_LABEL)], str] = Field(default={})
    tasks: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    dataset: str | None = None
    recipe: dict[str, Any] | None = None
    modalities: tuple[str, ...] = ()
    patch_size: Shape | None = None
    keep_largest: KeepLargest = "never"
    split: dict[str, Any] | None = None
    pretrained_on: PretrainedOn | None = None
    labels_used: dict[str, tuple[str, ...]] | None = None
    test_pretrained_on: tuple[str, ...] | None = None
    metrics: dict[str, float] = Field(default={})
    lineage: Lineage
    extra: dict[str, Any] = Field(default={})


class _WeightsFile(Record):
    size_bytes: int
    sha256: str


class _CardFile(Record):
    format: Literal[1] = 1
    weights: _WeightsFile
    card: ModelCard


def save_model(folder: Path, state: Mapping[str, Tensor], card: ModelCard) -> None:
    """Write a model; an existing one is replaced. Tensors may be on any device."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    data = safetensors.torch.save(tensors)
    weights = _WeightsFile(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    content = sealed(_CardFile(weights=weights, card=card).model_dump(mode="json"))
    files.write(str(folder / WEIGHTS_NAME), data)
    files.write(str(folder / CARD_NAME), json.dumps(content, indent=2, sort_keys=True).encode() + b"\n")


def load_model(folder: Path) -> tuple[ModelCard, dict[str, Tensor]]:
    """A model's card and weights (on the CPU).

    Raises CheckpointError if a file is missing, is not of this format, or the weights are not those of the
    card. Other files of the folder are not opened.
    """
    content = _read_card(folder / CARD_NAME)
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, its card is there; copy the whole folder again")
    data = path.read_bytes()
    found = _WeightsFile(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    if found != content.weights:
        raise CheckpointError(
            f"{path} has {found.size_bytes} bytes with SHA-256 {found.sha256[:12]}, its card says "
            f"{content.weights.size_bytes} bytes with {content.weights.sha256[:12]}; copy the folder again"
        )
    try:
        return content.card, safetensors.torch.load(data)
    except (SafetensorError, KeyError, RuntimeError) as error:  # KeyError: numbers of a type without a name
        raise CheckpointError(f"{path} is not in safetensors format: {error}; get the model anew") from None


def build_from_card(card: ModelCard) -> ResidualUNet:
    """The network a segmentation model's card describes, on the `meta` device: it has no weights, and takes
    no memory whatever the card says, until `load_state` gives it some that fit.

    Raises CheckpointError for a pretrained model (it has no classes) or a network this version cannot build.
    """
    if card.kind != "segmentation" or not card.classes:
        raise CheckpointError(
            "the model is a pretrained one and has no segmentation head; fine-tune it first"
        )
    with torch.device("meta"):
        return build_segmentation_network(network_config(card), card.in_channels, class_count(card.classes))


def network_config(card: ModelCard) -> NetworkConfig:
    """The config of the card's network. Raises CheckpointError if this version does not understand it."""
    try:
        return NetworkConfig.model_validate(card.network)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"the model's network config is not one of this version: {key}: {first['msg']}"
        ) from error


def patch_size_of(card: ModelCard) -> Shape:
    """The size of the patches the model was trained on.

    Raises CheckpointError if its card doesn't say, or names one that its network cannot take.
    """
    if card.patch_size is None:
        raise CheckpointError("the model's card does not say its patch_size; fine-tune it again")
    if misfit := network_config(card).misfit(card.patch_size, "the model's patch_size"):
        raise CheckpointError(f"{misfit}; fine-tune it again with one that is")
    return card.patch_size


def class_count(classes: Mapping[int, str]) -> int:
    """Outputs of a network for label values `classes`: one for each value up to the largest, and 0."""
    return 1 + max(classes)


def load_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load weights that must fit exactly; a network on the `meta` device takes them as its own.

    Raises CheckpointError naming the first that does not fit.
    """
    own = network.state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in own.items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"the weights do not fit the network: {name} is {found.get(name, 'missing')}, "
                f"expected {expected.get(name, 'no such parameter')}"
            )
        if not state[name].is_floating_point():
            raise CheckpointError(
                f"the weights do not fit the network: {name} is of {state[name].dtype}, expected real numbers"
            )
    bare = any(tensor.is_meta for tensor in own.values())
    network.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in state.items()}, assign=bare)


def _read_card(path: Path) -> _CardFile:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: the folder has no complete model; give a model's folder")
    try:
        content = read_sealed(str(path), path.read_bytes())
        return _CardFile.model_validate_json(json.dumps(content))
    except CorruptError as error:
        raise CheckpointError(f"{error}; get the model anew") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "content"
        raise CheckpointError(f"{path} is not a model card of this version: {key}: {first['msg']}") from error
