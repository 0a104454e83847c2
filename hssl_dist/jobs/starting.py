"""The network that fine-tuning starts from: new weights, and those of a model's parts over them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch

from hssl_dist import files
from hssl_dist.config.finetune import SCRATCH, FinetuneConfig, SupervisedConfig
from hssl_dist.config.network import NetworkConfig
from hssl_dist.errors import CheckpointError, ConfigError
from hssl_dist.networks.pretraining import build_segmentation_network
from hssl_dist.networks.transfer import TransferReport, transfer
from hssl_dist.networks.unet import ResidualUNet
from hssl_dist.networks.weights import CARD_NAME, ModelCard, class_count, load_model, network_config
from hssl_dist.records import ManifestHeader
from hssl_dist.tracking import fetch_model


@dataclass(frozen=True, slots=True)
class Start:
    """A network, its config, the learning-rate factors of what it took, and what that is, from which model.

    `rates` are by beginnings of parameters' names. `card` is the model's, `parent_card` its SHA-256, which
    covers that of its weights: it tells models at one place apart.
    """

    network: ResidualUNet
    settings: NetworkConfig
    rates: Mapping[str, float] = field(default_factory=dict)
    report: TransferReport | None = None
    parent_run: str | None = None
    parent_model: str | None = None
    parent_card: str | None = None
    card: ModelCard | None = None


def starting_point(config: FinetuneConfig, header: ManifestHeader) -> Start:
    """The network for the dataset's channels and classes, its new weights drawn from the config's seed.

    Raises MissingError, TrackingError or CheckpointError if the model cannot be had or does not fit, and
    ConfigError if the patch does not suit the network.
    """
    start = _from_scratch(config, header) if config.model == SCRATCH else _from_model(config, header)
    if misfit := start.settings.misfit(config.training.patch_size, "training.patch_size"):
        raise ConfigError(f"{misfit}; choose one that is")
    return start


def _from_scratch(config: FinetuneConfig, header: ManifestHeader) -> Start:
    return Start(_new_network(config, config.network, header), config.network)


def _from_model(config: FinetuneConfig, header: ManifestHeader) -> Start:
    fetched = fetch_model(config.tracking, config.model)
    card, state = load_model(fetched.folder)
    _check_channels(config, card, header)
    settings = network_config(card)
    with torch.device("meta"):  # a card may describe more than memory holds: the weights have to fit first
        transfer(_new_network(config, settings, header), state, config.parts)
    network = _new_network(config, settings, header)
    report = transfer(network, state, config.parts)
    return Start(
        network,
        settings,
        part_rates(config.training, config.parts, len(settings.widths)),
        report,
        # A folder knows no run, its card does.
        fetched.run_id
        or (card.lineage.parent_run if card.kind == "pretrained" else card.extra.get("run_id")),
        fetched.uri,
        files.sha256(str(fetched.folder / CARD_NAME))[0],
        card,
    )


def _check_channels(config: FinetuneConfig, card: ModelCard, header: ManifestHeader) -> None:
    """Raise CheckpointError if the model's stem, where it is taken, fits other images than the dataset's."""
    channels = len(header.channels)
    if "encoder" in config.parts and card.in_channels not in (1, channels):
        raise CheckpointError(
            f"{config.model} takes images of {card.in_channels} channels, those of dataset "
            f"{header.dataset!r} have {channels} ({', '.join(header.channels)}); choose a model for "
            f"{channels}, or for one, which serves any number"
        )


def other_network(config: FinetuneConfig, start: Start) -> str | None:
    """The warning that the config's network is not the model's, which is used; None if there is no such."""
    given = config.network
    if start.card is None or given in (NetworkConfig(), start.settings):
        return None
    key = next(key for key in type(given).model_fields if getattr(given, key) != getattr(start.settings, key))
    return (
        f"network.{key} is {getattr(given, key)}, but {config.model} has {getattr(start.settings, key)}, "
        "which is used: `network` is for `--model scratch` alone"
    )


def part_rates(training: SupervisedConfig, parts: Collection[str], stages: int) -> dict[str, float]:
    """Factors on the learning rate by beginnings of names, for parts taken from a model.

    Stage i of n has the encoder's factor times `layer_decay ** (n - 1 - i)`, the stem that of stage 0.
    """
    rates = dict.fromkeys(parts, 1.0)
    if "decoder" in rates:
        rates["decoder"] = training.decoder_rate
    if "encoder" in rates:
        rates["encoder"] = training.encoder_rate * training.layer_decay ** (stages - 1)
        for stage in range(stages):
            factor = training.layer_decay ** (stages - 1 - stage)
            rates[f"encoder.stages.{stage}"] = training.encoder_rate * factor
    return rates


def _new_network(config: FinetuneConfig, settings: NetworkConfig, header: ManifestHeader) -> ResidualUNet:
    """New weights from the seed, whatever the process did before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return build_segmentation_network(
            settings, len(header.channels), class_count(header.classes), config.training.deep_supervision
        )
