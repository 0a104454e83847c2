"""The peers' loops, each as its own documentation writes it, on the same volumes.

`lightly`: the plain SimCLR loop of lightly's tutorials with its `NTXentLoss`, on the encoder and projector of
our network; views by MONAI's transforms, one sample after the other, in a `DataLoader`; volumes in memory.
The transforms are those that our views consist of, with the same strengths. Beyond the loop there is nothing:
no second level of the loss, no check for numbers that are not finite, no checkpoint, no log.
`lightly_on_plain_modules`: the same on the same architecture as dynamic_network_architectures builds it, of
torch's own modules.
`segresnet`, `swinunetr`: MONAI's self-supervised recipe (project-monai/tutorials, vit_unetr_ssl: two
corrupted copies of a crop, restoration by L1 and `ContrastiveLoss` over the restored images, Adam) on its
networks.

A plain loop leaves glibc's malloc as it is, and so do these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.step_data import Workload
from benchmarks.step_ours import device_memory, drain
from benchmarks.step_phases import Phases
from hssl_dist.config.pretrain import PretrainConfig
from hssl_dist.networks.pretraining import build_pretraining_network, pool
from hssl_dist.sampling.schedule import region_shape

if TYPE_CHECKING:
    from benchmarks.step_turns import ArmSpec, Turns
    from hssl_dist.config.pretrain import ViewConfig
    from hssl_dist.records import Shape

Pair = tuple[Tensor, ...]
_ITEMS = 1 << 20


class Samples(torch.utils.data.Dataset[Any]):
    """Sample `i` is `views` of volume `i`, round and round; the volumes are in memory."""

    def __init__(self, workload: Workload, views: Callable[[Any], Pair]) -> None:
        self._volumes = [torch.from_numpy(np.load(path)) for path in workload.arrays()]
        self._views = views

    def __getitem__(self, number: int) -> Pair:
        return self._views(self._volumes[number % len(self._volumes)])

    def __len__(self) -> int:
        return _ITEMS


# -------------------------------------------------------------------------------------------- the plain loop


def lightly(spec: ArmSpec, turns: Turns) -> None:
    """lightly's loop on our encoder and projector."""
    config = PretrainConfig.model_validate(spec.config)
    network = build_pretraining_network(config.network, config.objective, tasks=1, groups=1)
    network.set_stage("encoder")
    _lightly(spec, turns, config, _Embedder(network.encoder, network.projector[0]))


def lightly_on_plain_modules(spec: ArmSpec, turns: Turns) -> None:
    """lightly's loop on the same architecture of plain modules."""
    from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder

    config = PretrainConfig.model_validate(spec.config)
    architecture = config.network
    encoder = ResidualEncoder(
        input_channels=1,
        n_stages=len(architecture.widths),
        features_per_stage=list(architecture.widths),
        conv_op=nn.Conv3d,
        kernel_sizes=[list(kernel) for kernel in architecture.kernels],
        strides=[list(stride) for stride in architecture.strides],
        n_blocks_per_stage=list(architecture.encoder_blocks),
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        return_skips=True,
    )
    network = build_pretraining_network(architecture, config.objective, tasks=1, groups=1)
    _lightly(spec, turns, config, _Embedder(encoder, network.projector[0]))


class _Embedder(nn.Module):
    """The deepest features, pooled and projected, as pretraining does."""

    def __init__(self, encoder: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector

    def forward(self, images: Tensor) -> Tensor:
        projected: Tensor = self.projector(pool(self.encoder(images)[-1].float()))
        return projected


def _lightly(spec: ArmSpec, turns: Turns, config: PretrainConfig, network: nn.Module) -> None:
    criterion = peers.lightly_loss().NTXentLoss(temperature=config.objective.temperature)
    network.to(spec.device)

    def loss_of(batch: Pair, phases: Phases) -> Tensor:
        with phases.phase("forward"), _autocast(spec, config):
            first, second = (network(view) for view in batch)
        with phases.phase("loss"):
            loss: Tensor = criterion(first, second)
        return loss

    views = _pair_of_views(region_shape(config.sampling), config.sampling.patch_size, config.views)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=config.encoder.learning_rate, weight_decay=config.encoder.weight_decay
    )
    _loop(spec, turns, config, views, loss_of, optimiser, config.global_batch, config.sampling.patch_size)


def _pair_of_views(region: Shape, patch: Shape, config: ViewConfig) -> Callable[[Any], Pair]:
    """Two views of a random region, by MONAI's transforms with the strengths of our own views."""
    from monai.data import set_track_meta
    from monai.transforms import (
        Compose,
        RandAdjustContrast,
        RandAffine,
        RandFlip,
        RandGaussianNoise,
        RandGaussianSmooth,
        RandScaleIntensity,
        RandShiftIntensity,
        RandSimulateLowResolution,
        RandSpatialCrop,
    )

    set_track_meta(False)
    turn = config.rotation_rad
    thickness = max(1.0, min(patch[1:]) / patch[0])
    gamma = (float(np.exp(-config.gamma)), float(np.exp(config.gamma)))
    crop = RandSpatialCrop(region, random_size=False)
    view = Compose(
        [
            RandAffine(
                prob=1.0,
                rotate_range=(turn, turn / 4, turn / 4),
                scale_range=config.scale,
                translate_range=[side / 4 for side in patch],
                spatial_size=patch,
                padding_mode="border",
            ),
            *(RandFlip(prob=config.flip, spatial_axis=axis) for axis in range(3)),
            RandGaussianSmooth((0.4 / thickness, 1.2 / thickness), (0.4, 1.2), (0.4, 1.2), prob=config.blur),
            RandSimulateLowResolution(prob=config.low_resolution, zoom_range=(0.5, 1.0)),
            RandScaleIntensity(factors=config.contrast, prob=1.0),
            RandShiftIntensity(offsets=config.brightness, prob=1.0),
            RandAdjustContrast(prob=1.0, gamma=gamma),
            RandGaussianNoise(prob=1.0, std=config.noise),
        ]
    )

    def pair(volume: Any) -> Pair:
        part = crop(volume)
        return torch.as_tensor(view(part)), torch.as_tensor(view(part))

    return pair


# ------------------------------------------------------------------------------------------------------ MONAI


def segresnet(spec: ArmSpec, turns: Turns) -> None:
    """MONAI's recipe on its SegResNet."""
    from monai.networks.nets import SegResNet

    config = PretrainConfig.model_validate(spec.config)
    _monai(spec, turns, SegResNet(in_channels=1, out_channels=1, init_filters=16), config.sampling.patch_size)


def swinunetr(spec: ArmSpec, turns: Turns) -> None:
    """MONAI's recipe on its SwinUNETR, which takes sides of multiples of 32 alone."""
    import einops  # noqa: F401  (MONAI finds out in the first step that it is not there)
    from monai.networks.nets import SwinUNETR

    network = SwinUNETR(in_channels=1, out_channels=1, feature_size=spec.options["feature_size"])
    _monai(spec, turns, network, tuple(spec.options["patch"]))


def _monai(spec: ArmSpec, turns: Turns, network: nn.Module, patch: Shape) -> None:
    from monai.losses import ContrastiveLoss

    config = PretrainConfig.model_validate(spec.config)
    network.to(spec.device)
    restoring, contrast = nn.L1Loss(), ContrastiveLoss(temperature=0.05)

    def loss_of(batch: Pair, phases: Phases) -> Tensor:
        whole, first, second = batch
        with phases.phase("forward"), _autocast(spec, config):
            restored, other = network(first), network(second)
        with phases.phase("loss"):
            restored, other = restored.float(), other.float()
            restoration = restoring(restored, whole)
            total: Tensor = restoration + contrast(restored.flatten(1), other.flatten(1)) * restoration
        return total

    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4)
    _loop(spec, turns, config, _corrupted_pair(patch), loss_of, optimiser, spec.options["batch"], patch)


def _corrupted_pair(patch: Shape) -> Callable[[Any], Pair]:
    """A crop and two corrupted copies of it; holes and shuffled boxes no larger than the patch."""
    from monai.data import set_track_meta
    from monai.transforms import Compose, OneOf, RandCoarseDropout, RandCoarseShuffle, RandSpatialCrop

    set_track_meta(False)

    def up_to(side: int) -> list[int]:
        return [min(side, length) for length in patch]

    holes = partial(RandCoarseDropout, holes=6, prob=1.0)
    crop = RandSpatialCrop(patch, random_size=False)
    corrupt = Compose(
        [
            OneOf(
                [
                    holes(spatial_size=up_to(5), max_spatial_size=up_to(32), dropout_holes=True),
                    holes(spatial_size=up_to(20), max_spatial_size=up_to(64), dropout_holes=False),
                ]
            ),
            RandCoarseShuffle(holes=10, spatial_size=up_to(8), prob=0.8),
        ]
    )

    def pair(volume: Any) -> Pair:
        part = crop(volume)
        return part, *(torch.as_tensor(corrupt(part)) for _ in range(2))

    return pair


# ------------------------------------------------------------------------------------------------ what all do


def _autocast(spec: ArmSpec, config: PretrainConfig) -> torch.autocast:
    return torch.autocast(spec.device, torch.bfloat16, enabled=config.precision == "bfloat16")


def _loop(
    spec: ArmSpec,
    turns: Turns,
    config: PretrainConfig,
    views: Callable[[Any], Pair],
    loss_of: Callable[[Pair, Phases], Tensor],
    optimiser: torch.optim.Optimizer,
    batch_size: int,
    patch: Shape,
) -> None:
    """Steps until the turns end."""
    device = torch.device(spec.device)
    phases = Phases(device)
    loader = torch.utils.data.DataLoader(
        Samples(Workload(spec.folder), views),
        batch_size=batch_size,
        num_workers=spec.workers,
        persistent_workers=spec.workers > 0,
        pin_memory=device.type == "cuda",
    )
    total = torch.zeros((), device=device)
    for batch in _timed(iter(loader), phases):
        with phases.phase("data"):
            moved = tuple(view.to(device, non_blocking=True) for view in batch)
        loss = loss_of(moved, phases)
        with phases.phase("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        with phases.phase("optimiser"):
            optimiser.step()
            optimiser.zero_grad()
        total += loss.detach()
        turns.after_step(
            lambda: {"phases": phases.take(), **device_memory(device)},
            phases.begin,
            lambda: {"samples_per_step": batch_size, "patch": list(patch), "precision": config.precision},
            lambda: drain(device),
        )


def _timed(batches: Iterator[Any], phases: Phases) -> Iterator[Any]:
    while True:
        with phases.phase("data"):
            batch = next(batches)
        yield batch
