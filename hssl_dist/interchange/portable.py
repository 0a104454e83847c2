"""The U-Net of a model as other tools get it, and an account of every parameter the model has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hssl_dist.config.network import NetworkConfig
from hssl_dist.errors import CheckpointError, ConfigError
from hssl_dist.networks.pretraining import build_segmentation_network
from hssl_dist.networks.transfer import TransferReport, transfer
from hssl_dist.networks.unet import ResidualUNet
from hssl_dist.networks.weights import ModelCard, class_count, network_config

PRETRAINING_ONLY: dict[str, str] = {
    "projector": "projector of the image level; only the pretraining loss reads it",
    "task_head": "classifier of the pretraining tasks; only the pretraining loss reads it",
    "group_head": "classifier of the groups of tasks; only the pretraining loss reads it",
    "dense_head": "head of dense correspondence; only the pretraining loss reads it",
    "restoration_head": "head that restores corrupted images; only the pretraining loss reads it",
    "log_temperature": "temperature of the contrastive loss",
}
"""Parts of a pretrained model that no other tool has a place for, and what they are."""

_STAND_IN_CLASSES = 2
_STAND_IN_SEED = 0


@dataclass(frozen=True, slots=True)
class Portable:
    """A model's U-Net.

    `network` has the model's weights. A pretrained model has no segmentation heads: its `network` gets new
    ones for two classes, which only a comparison of outputs uses; `state` never holds them.
    """

    card: ModelCard
    config: NetworkConfig
    network: ResidualUNet
    in_channels: int
    classes: int
    report: TransferReport

    @property
    def has_heads(self) -> bool:
        """Whether the model segments; otherwise it is a pretrained encoder and decoder."""
        return self.card.kind == "segmentation"

    @property
    def state(self) -> dict[str, Tensor]:
        """What is exported, under our names."""
        state = self.network.state_dict()
        return {name: state[name] for name in self.report.loaded}

    @property
    def left_out(self) -> dict[str, str]:
        """The model's other parameters, each with the reason."""
        return {name: PRETRAINING_ONLY[name.partition(".")[0]] for name in self.report.unused}


def portable(card: ModelCard, state: Mapping[str, Tensor], channels: int | None = None) -> Portable:
    """The U-Net of a model, for so many input channels (the model's own if not given).

    A pretrained network for one channel can be exported for several; `transfer` says how its first
    convolution is spread. Raises CheckpointError if the weights do not fit the card or have parts that are
    neither the U-Net's nor known to be pretraining's, ConfigError for channels that a segmentation model
    does not have.
    """
    config = network_config(card)
    segmentation = card.kind == "segmentation"
    parts = ("encoder", "decoder", "heads") if segmentation else ("encoder", "decoder")
    for name in sorted(state):
        part = name.partition(".")[0]
        if part not in parts and (segmentation or part not in PRETRAINING_ONLY):
            raise CheckpointError(
                f"parameter {name!r} is no part of a {card.kind} model of this version; "
                "export it with the version that made it"
            )
    channels = channels or card.in_channels
    if channels != card.in_channels and (segmentation or card.in_channels != 1):
        raise ConfigError(
            f"the model takes {card.in_channels} input channels and cannot be exported for {channels}; "
            "only a pretrained model for one channel can be spread over several"
        )
    classes = class_count(card.classes) if segmentation else _STAND_IN_CLASSES
    with torch.device("meta"):  # a card may describe more than memory holds: the weights have to fit first
        transfer(build_segmentation_network(config, channels, classes), state, parts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_STAND_IN_SEED)
        network = build_segmentation_network(config, channels, classes)
    return Portable(card, config, network, channels, classes, transfer(network, state, parts))
