"""The network that is pretrained: a U-Net's encoder and decoder with one head per term of the loss.

Encoder stage: the encoder's features at each of the objective's depths are pooled (their mean and maximum:
instance norm pins each channel's mean before the last shortcut, so the mean alone tells little) and go to a
projector and a task and a group head of that depth. Decoder stage: the finest decoder features go to the
dense and the restoration head. A head exists only if its term's weight is not zero, so in each stage every
trainable parameter gets a gradient and DDP needs no search for unused ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hssl_dist.networks.unet import ResidualEncoder, ResidualUNet, UNetDecoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from hssl_dist.config.network import NetworkConfig
    from hssl_dist.config.pretrain import ObjectiveConfig

Stage = Literal["encoder", "decoder"]

STAGE_PARTS: dict[Stage, tuple[str, ...]] = {
    "encoder": ("projector", "task_head", "group_head", "log_temperature"),
    "decoder": ("decoder", "dense_head", "restoration_head"),
}
"""Parts each stage trains, besides the encoder."""

_SINGLE_BYTES = 4


@dataclass(frozen=True, slots=True)
class PretrainingOutput:
    """What the heads say; empty or None where stage or objective has no such term. Nothing is unit-length.

    The tuples have one entry per depth of the objective; `pooled` is what those heads read.
    """

    embeddings: tuple[Float[Tensor, "b d"], ...] = ()
    task_logits: tuple[Float[Tensor, "b tasks"], ...] = ()
    group_logits: tuple[Float[Tensor, "b groups"], ...] = ()
    pooled: tuple[Float[Tensor, "b _"], ...] = ()
    dense: Float[Tensor, "b e z y x"] | None = None
    restored: Float[Tensor, "b c z y x"] | None = None


class PretrainingNetwork(nn.Module):
    """Encoder, decoder and the heads of both stages; build it with `build_pretraining_network`.

    Under DDP: `set_stage` first, then wrap this module, then one forward pass per backward pass (put both
    views, and the corrupted ones, into one batch).
    """

    def __init__(
        self,
        network: NetworkConfig,
        objective: ObjectiveConfig,
        tasks: int,
        groups: int,
        in_channels: int,
    ) -> None:
        super().__init__()
        finest = network.widths[0]
        self.stages = tuple(len(network.widths) - 1 - depth for depth in objective.depths)
        pooled = [2 * network.widths[stage] for stage in self.stages]
        self.encoder = ResidualEncoder(network, in_channels)
        self.decoder = UNetDecoder(network)
        self.projector = _heads(
            pooled if objective.image_weight else (), partial(_projector, size=objective.projection_size)
        )
        self.task_head = _heads(
            pooled if objective.task_weight else (), partial(nn.Linear, out_features=tasks)
        )
        self.group_head = _heads(
            pooled if objective.group_weight else (), partial(nn.Linear, out_features=groups)
        )
        # A linear map to more channels than it reads would span no larger space, only cost memory.
        self.dense_head = nn.Conv3d(finest, finest, kernel_size=1) if objective.dense_weight else None
        self.restoration_head = (
            nn.Conv3d(finest, in_channels, kernel_size=1) if objective.restoration_weight else None
        )
        self.learn_temperature = objective.learn_temperature and objective.image_weight > 0
        self.log_temperature = nn.Parameter(
            torch.tensor(math.log(objective.temperature)), requires_grad=self.learn_temperature
        )

    def forward(self, images: Float[Tensor, "b c z y x"], stage: Stage) -> PretrainingOutput:
        """The heads' outputs for a stage. Under autocast the heads still work in full precision."""
        features = self.encoder(images)
        if stage == "encoder":
            with torch.autocast(images.device.type, enabled=False):
                pooled = tuple(pool(_full(features[number])) for number in self.stages)
                return PretrainingOutput(
                    embeddings=_apply_all(self.projector, pooled),
                    task_logits=_apply_all(self.task_head, pooled),
                    group_logits=_apply_all(self.group_head, pooled),
                    pooled=pooled,
                )
        decoded = self.decoder(features)[-1]
        with torch.autocast(images.device.type, enabled=False):
            decoded = _full(decoded)
            return PretrainingOutput(
                dense=_apply(self.dense_head, decoded), restored=_apply(self.restoration_head, decoded)
            )

    @property
    def temperature(self) -> Float[Tensor, ""]:
        """The image level's temperature, with a gradient if it is learnt."""
        return self.log_temperature.exp()

    def set_stage(self, stage: Stage, encoder_trainable: bool = True) -> None:
        """Make exactly the stage's parameters require a gradient; do it before wrapping in DDP."""
        parts = set(STAGE_PARTS[stage]) | ({"encoder"} if encoder_trainable else set())
        for name, parameter in self.named_parameters():
            part = name.partition(".")[0]
            parameter.requires_grad_(part in parts and (part != "log_temperature" or self.learn_temperature))


def pool(features: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b two_c"]:
    """Mean and maximum of each channel over the voxels."""
    return torch.cat((features.mean(dim=(2, 3, 4)), features.amax(dim=(2, 3, 4))), dim=1)


def _full(x: Tensor) -> Tensor:
    """Numbers of less than single precision as single precision; others as they are."""
    return x.float() if x.element_size() < _SINGLE_BYTES else x


def _heads(widths: Iterable[int], head: Callable[[int], nn.Module]) -> nn.ModuleList:
    """A head for each width it reads."""
    return nn.ModuleList(head(width) for width in widths)


def _projector(width: int, size: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, size))


def _apply_all(heads: nn.ModuleList, pooled: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Each depth's head on its features; nothing if the term has no heads."""
    return tuple(head(features) for head, features in zip(heads, pooled, strict=False))


def _apply(head: nn.Module | None, features: Tensor) -> Tensor | None:
    return None if head is None else head(features)


def build_pretraining_network(
    network: NetworkConfig, objective: ObjectiveConfig, tasks: int, groups: int, in_channels: int = 1
) -> PretrainingNetwork:
    """The network of a pretraining config, with new weights from torch's random state."""
    return PretrainingNetwork(network, objective, tasks, groups, in_channels)


def build_segmentation_network(
    network: NetworkConfig, in_channels: int, classes: int, deep_supervision: bool = True
) -> ResidualUNet:
    """A U-Net with new weights; `classes` counts the background."""
    return ResidualUNet(network, in_channels, classes, deep_supervision)
