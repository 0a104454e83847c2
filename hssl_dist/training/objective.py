"""What a stage of pretraining asks of the network: its parts, which `training.step` puts together.

A global batch may be too large for memory, so a rank's share of it passes through the network in
micro-batches. What couples the samples (the contrast with negatives in all of the batch, and every mean over
it) is told apart from what does not:

    prepare   a micro-batch's regions to images, points and masks, from the samples' seeds alone
    kept      the little of the network's output that the coupled terms need: embeddings, not voxels
    coupled   the terms of what was kept of the whole batch
    separate  the terms of one micro-batch, given what is counted over the whole batch

`training.encoder_terms` and `training.decoder_terms` have these for each stage. A term exists if its weight
is not zero, and with it the network's head. Each value is this rank's share of the loss over the global
batch: the mean of the ranks' values is that of one process on the whole batch, and so are the gradients (see
`losses.scaling`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int, Num, Shaped
from torch import Tensor

from hssl_dist.config.pretrain import ObjectiveConfig, PretrainConfig
from hssl_dist.networks.pretraining import PretrainingOutput
from hssl_dist.sampling import Regions

Kept = Mapping[str, tuple[Shaped[Tensor, "view b ..."], ...]]
"""By name, one tensor for each depth of the objective."""

Terms = Mapping[str, Float[Tensor, ""]]


@dataclass(frozen=True, slots=True)
class Samples:
    """This rank's part of a global batch, or some of it; `seeds` hold all randomness of each sample.

    The regions may be where there is room for all of them, until some are put `on` the device. `numbers` are
    the samples' places in the global batch; samples of equal `relatives` are no negatives of each other.
    `counts` are the samples of each rank's whole part; without it the losses ask the ranks, and check that
    they agree, for which the host waits for the device.
    """

    regions: Regions
    tasks: Int[Tensor, " b"]
    groups: Int[Tensor, " b"]
    numbers: Int[Tensor, " b"]
    relatives: Int[Tensor, " b"]
    seeds: tuple[int, ...]
    counts: tuple[int, ...] | None = None

    def split(self, size: int | None) -> list[Samples]:
        """The samples in parts of at most `size`, in order; all at once for None."""
        size = size or len(self.seeds)
        return [self._part(slice(low, low + size)) for low in range(0, len(self.seeds), size)]

    def on(self, device: torch.device) -> Samples:
        """The same with the regions on a device."""
        return replace(self, regions=self.regions.to(device))

    def _part(self, rows: slice) -> Samples:
        return Samples(
            self.regions[rows],
            self.tasks[rows],
            self.groups[rows],
            self.numbers[rows],
            self.relatives[rows],
            self.seeds[rows],
        )


@dataclass(frozen=True, slots=True)
class Prepared:
    """A micro-batch for the network; `counts` is what its separate terms are to be divided by, by term."""

    images: Float[Tensor, "views 1 z y x"]
    counts: Mapping[str, Num[Tensor, ""]] = field(default_factory=dict)
    geometry: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StageObjective:
    """The parts of one stage; `weights` gives the weight of each of its terms."""

    weights: Callable[[ObjectiveConfig], Mapping[str, float]]
    prepare: Callable[[Samples, PretrainConfig], Prepared]
    keeps: Callable[[ObjectiveConfig], bool]
    kept: Callable[[PretrainingOutput, Prepared, PretrainConfig], Kept]
    coupled: Callable[[Kept, Samples, Tensor, ObjectiveConfig], Terms]
    separate: Callable[[PretrainingOutput, Prepared, Mapping[str, Tensor], ObjectiveConfig], Terms]
