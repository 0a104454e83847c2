"""The network that fine-tuning starts from: new weights, and those of a model's parts over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from hssl_dist.config.finetune import SCRATCH, FinetuneConfig
from hssl_dist.config.network import NetworkConfig
from hssl_dist.errors import ConfigError
from hssl_dist.networks.pretraining import build_segmentation_network
from hssl_dist.networks.transfer import TransferReport, transfer
from hssl_dist.networks.unet import ResidualUNet
from hssl_dist.networks.weights import class_count, load_model, network_config
from hssl_dist.records import ManifestHeader
from hssl_dist.tracking import fetch_model


@dataclass(frozen=True, slots=True)
class Start:
    """A network, its config, the learning-rate factors of its parts, and what it took from which model."""

    network: ResidualUNet
    settings: NetworkConfig
    rates: Mapping[str, float] = field(default_factory=dict)
    report: TransferReport | None = None
    parent_run: str | None = None
    parent_model: str | None = None


def starting_point(config: FinetuneConfig, header: ManifestHeader) -> Start:
    """The network for the dataset's channels and classes, its new weights drawn from the config's seed.

    Raises MissingError, TrackingError or CheckpointError if the model cannot be had or does not fit, and
    ConfigError if the patch does not suit the network.
    """
    start = _from_scratch(config, header) if config.model == SCRATCH else _from_model(config, header)
    patch_size, reduction = config.training.patch_size, start.settings.reduction
    if any(size % factor for size, factor in zip(patch_size, reduction, strict=True)):
        raise ConfigError(
            f"training.patch_size {patch_size} is not a multiple of the network's reduction {reduction}; "
            "choose one that is"
        )
    return start


def _from_scratch(config: FinetuneConfig, header: ManifestHeader) -> Start:
    return Start(_new_network(config.network, header, config.seed), config.network)


def _from_model(config: FinetuneConfig, header: ManifestHeader) -> Start:
    fetched = fetch_model(config.tracking, config.model)
    card, state = load_model(fetched.folder)
    settings = network_config(card)
    network = _new_network(settings, header, config.seed)
    report = transfer(network, state, config.parts)
    rates = {"encoder": config.training.encoder_rate, "decoder": config.training.decoder_rate}
    return Start(
        network,
        settings,
        {part: rate for part, rate in rates.items() if part in config.parts},
        report,
        fetched.run_id,
        fetched.uri,
    )


def _new_network(settings: NetworkConfig, header: ManifestHeader, seed: int) -> ResidualUNet:
    """New weights from the seed, whatever the process did before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_segmentation_network(settings, len(header.channels), class_count(header.classes))
