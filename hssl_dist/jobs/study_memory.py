"""About what memory of its machine a piece of a study takes on the CPU: what its Ray task asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hssl_dist.jobs.study_plan import Cell, Pretraining

if TYPE_CHECKING:
    from hssl_dist.config.acceleration import StepAccelerationConfig
    from hssl_dist.config.network import NetworkConfig
    from hssl_dist.config.study import StudyConfig
    from hssl_dist.records import Manifest, Shape

PROCESS_BYTES = 1_500_000_000
"""Libraries, weights and the optimiser's state, small volumes and batches."""

_BYTES_PER_VALUE = 40
"""Of a block: ten float32 for each value of its output, in convolutions, norms, shortcut and gradients."""

_KEPT = 1.5
"""Times as much for activations where freed memory is kept (docs/speed.md)."""

_VIEWS = 2
"""Of each region of a pretraining."""

_SCORE_BYTES, _CHANNEL_BYTES, _LABEL_BYTES = 4, 6, 8
"""Per voxel of a volume: float32 of a class; of a channel, stored and in float32; labels and their parts."""


def pretraining_bytes(pretraining: Pretraining) -> int:
    """What a pretraining takes, by its network and the views that pass through it at once."""
    config = pretraining.config
    samples = _VIEWS * (config.micro_batch or config.global_batch)
    activations = _activation_bytes(config.network, config.sampling.patch_size, samples)
    return PROCESS_BYTES + _held_bytes(activations, config.acceleration)


def cell_bytes(config: StudyConfig, volume_bytes: Mapping[str, int], cell: Cell) -> int:
    """What a cell takes: the more of training and of scoring a volume, by what its dataset's take."""
    training, network = cell.arm.training(cell.task), config.network(cell.arm, cell.task)
    activations = _activation_bytes(network, training.patch_size, training.batch_size)
    held = _held_bytes(activations, training.acceleration)
    return PROCESS_BYTES + max(held, volume_bytes[cell.task.dataset])


def volume_bytes(manifest: Manifest) -> int:
    """What scoring the largest volume of a dataset takes: image, labels and the scores of all classes."""
    header = manifest.header
    of_voxel = _SCORE_BYTES * (len(header.classes) + 1) + _CHANNEL_BYTES * len(header.channels) + _LABEL_BYTES
    return of_voxel * max((math.prod(case.shape) for case in manifest.cases), default=0)


def _held_bytes(activations: int, acceleration: StepAccelerationConfig) -> int:
    """What the process holds for them: more if freed memory is kept, for not all of it fits what is next."""
    return math.ceil(_KEPT * activations) if acceleration.keep_freed_memory else activations


def _activation_bytes(network: NetworkConfig, patch_size: Shape, samples: int) -> int:
    """Of all stages' blocks, there and back, for so many patches at once."""
    voxels, values = float(math.prod(patch_size)), 0.0
    for stage, (width, stride) in enumerate(zip(network.widths, network.strides, strict=True)):
        voxels /= math.prod(stride)
        values += (
            voxels * width * (network.encoder_blocks[stage] + sum(network.decoder_blocks[stage : stage + 1]))
        )
    return math.ceil(samples * values * _BYTES_PER_VALUE)
