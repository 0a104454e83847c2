"""Whether micro-batches leave the gradient as it is: the step of training beside one process, as `gradients`.

The same linear layer takes the place of the encoder and its projector: its features are the voxels of a
small view. `training.step` takes each rank's regions through it in micro-batches, with views made anew for
each pass; the reference is the layer in float64, in one process, with the textbook's loss of all views.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.contrastive import textbook
from benchmarks.gradients import (
    BOUNDS,
    EMBEDDING_SIZE,
    EQUAL_SPLITS,
    LOG_TEMPERATURE,
    RAGGED_SPLITS,
    REGIONS,
    GradientCheck,
    relative_error,
)
from hssl_dist import collectives
from hssl_dist.augment import two_views
from hssl_dist.config.network import NetworkConfig
from hssl_dist.config.pretrain import ObjectiveConfig, PretrainConfig, SamplingConfig
from hssl_dist.networks.pretraining import PretrainingOutput
from hssl_dist.sampling import Regions
from hssl_dist.training.objective import Samples
from hssl_dist.training.step import backward
from tests.distributed.ranks import run_ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

PATCH_SIZE, REGION_SIZE, MICRO_BATCH = (4, 4, 4), (6, 6, 6), 7


class _Embedder(nn.Module):
    """The part of a pretraining network that the image level needs."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.linear = nn.Linear(PATCH_SIZE[0] * PATCH_SIZE[1] * PATCH_SIZE[2], EMBEDDING_SIZE)
        self.log_temperature = nn.Parameter(torch.tensor(LOG_TEMPERATURE))
        self.to(dtype)

    @property
    def temperature(self) -> Tensor:
        return self.log_temperature.exp()

    def forward(self, images: Tensor, stage: str) -> PretrainingOutput:  # noqa: ARG002
        return PretrainingOutput(embeddings=(self.linear(images.flatten(1)),))


def check_all(quick: bool) -> list[GradientCheck]:
    """Every split; one of two ragged ranks for a quick run."""
    splits = RAGGED_SPLITS[:1] if quick else (*EQUAL_SPLITS, *RAGGED_SPLITS)
    return [check for split in splits for check in check_micro_batches(split, (MICRO_BATCH,))]


def check_micro_batches(split: tuple[int, ...], sizes: Sequence[int]) -> list[GradientCheck]:
    """Check micro-batches of each size in both precisions on new ranks with `split[r]` regions each."""
    by_rank = run_ranks(_errors_of_a_rank, len(split), split, tuple(sizes))
    return [
        GradientCheck(
            "ours",
            dtype,
            split,
            max(errors[size, dtype]["weight"] for errors in by_rank),
            by_rank[0][size, dtype]["scale"],
            max(errors[size, dtype]["temperature"] for errors in by_rank),
            None,
            size,
        )
        for size in sizes
        for dtype in BOUNDS
    ]


def _errors_of_a_rank(
    split: tuple[int, ...], sizes: tuple[int, ...]
) -> dict[tuple[int, str], dict[str, float]]:
    expected = _reference()
    errors = {}
    start = sum(split[: collectives.rank()])
    own = slice(start, start + split[collectives.rank()])
    for size in sizes:
        for dtype in BOUNDS:
            network = _Embedder(getattr(torch, dtype))
            wrapped = DistributedDataParallel(network)
            backward("encoder", _samples(own), network, wrapped, _config(size))  # type: ignore[arg-type]
            found = network.linear.weight.grad
            assert found is not None
            assert network.log_temperature.grad is not None
            errors[size, dtype] = {
                "weight": relative_error(found, expected[0]),
                "scale": float((found.double() * expected[0]).sum() / expected[0].square().sum()),
                "temperature": relative_error(network.log_temperature.grad, expected[1]),
            }
    return errors


def _reference() -> tuple[Tensor, Tensor]:
    network, samples, config = _Embedder(torch.float64), _samples(slice(None)), _config(REGIONS)
    views = two_views(samples.regions.values(), samples.seeds, PATCH_SIZE, config.views)
    first, second = (network(view.double(), "encoder").embeddings[0] for view in (views.first, views.second))
    textbook(first, second, network.temperature).backward()
    assert network.linear.weight.grad is not None
    assert network.log_temperature.grad is not None
    return network.linear.weight.grad, network.log_temperature.grad


def _samples(own: slice) -> Samples:
    generator = torch.Generator().manual_seed(1)
    intensities = torch.randn(REGIONS, 1, *REGION_SIZE, generator=generator)
    regions = Regions(intensities, torch.ones(REGIONS))[own]
    numbers = torch.arange(REGIONS)[own]
    return Samples(regions, 0 * numbers, 0 * numbers, numbers, numbers, tuple(numbers.tolist()))


def _config(micro_batch: int) -> PretrainConfig:
    """Only the image level."""
    return PretrainConfig(
        global_batch=REGIONS,
        micro_batch=micro_batch,
        sampling=SamplingConfig(patch_size=PATCH_SIZE),
        network=NetworkConfig(
            widths=(4, 4),
            strides=((1, 1, 1), (2, 2, 2)),
            kernels=((3, 3, 3), (3, 3, 3)),
            encoder_blocks=(1, 1),
            decoder_blocks=(1,),
        ),
        objective=ObjectiveConfig(task_weight=0, group_weight=0, learn_temperature=True),
    )
