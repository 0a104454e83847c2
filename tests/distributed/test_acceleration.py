"""Ranks' gradients are those of one process whatever the buckets, and with recomputed stages too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from hssl_dist import collectives
from hssl_dist.config.acceleration import AccelerationConfig
from hssl_dist.sampling.loader import PretrainingLoader, rank_slice
from hssl_dist.sampling.schedule import Schedule
from hssl_dist.training.acceleration import accelerated, distributed
from hssl_dist.training.checkpoint import CheckpointStore
from hssl_dist.training.loop import run_pretraining
from hssl_dist.training.objective import Samples
from hssl_dist.training.step import backward
from tests.distributed.ranks import run_ranks
from tests.tiny_pretraining import ArrayReader, Recorder, manifests
from tests.unit.training.test_loss_scale import float16_run
from tests.unit.training.test_step import ALL_OPTIONS, new_step, settings_of

CPU = torch.device("cpu")
SETTINGS: list[dict[str, Any]] = [
    {},
    {"bucket_mb": 0.001, "bucket_views": False},
    {"bucket_mb": 0.001, "recompute_stages": 1},
    {"recompute_stages": 9, "channels_last": True},
]

Gradients = dict[str, Tensor]


def gradients(settings: list[dict[str, Any]]) -> list[Gradients]:
    """Of both stages, for each setting without micro-batches and with them, on this rank's samples."""
    return [
        _gradient(stage, values, micro_batch)
        for stage in ("encoder", "decoder")
        for values in settings
        for micro_batch in (None, 2)
    ]


def _gradient(stage: Any, values: dict[str, Any], micro_batch: int | None) -> Gradients:
    config = settings_of(ALL_OPTIONS, micro_batch)
    acceleration = AccelerationConfig.model_validate(values)
    network, _ = new_step(config, stage)
    ranks = collectives.world_size()
    schedule = Schedule(manifests(), config.sampling, config.seed, config.global_batch)
    batch = next(PretrainingLoader(schedule, ArrayReader(), collectives.rank(), ranks).batches(0, 1))
    counts = tuple(len(rank_slice(config.global_batch, rank, ranks)) for rank in range(ranks))
    samples = Samples(
        batch.regions,
        batch.tasks,
        batch.groups,
        torch.tensor(batch.indices),
        batch.patients,
        batch.seeds,
        counts if ranks > 1 else None,  # known, as after a stage's first step, and asked for
    )
    with accelerated(network, acceleration, CPU):
        wrapped = distributed(network, acceleration, CPU)
        assert isinstance(wrapped, DistributedDataParallel) == collectives.is_distributed()
        for _ in range(2):  # DDP lays out its buckets anew after the first backward pass
            network.zero_grad(set_to_none=True)
            backward(stage, samples, network, wrapped, config)
    return {name: value.grad.clone() for name, value in network.named_parameters() if value.grad is not None}


def overflow(folder: Path) -> tuple[list[float], bool]:
    """Last scale and a sum of the weights of a float16 run that begins with overflows; are they finite."""
    store = CheckpointStore(str(folder))
    result = run_pretraining(float16_run(1e3), manifests(), ArrayReader(), store, Recorder(), CPU)
    weights = torch.cat([value.flatten() for value in result.network.parameters()])
    state = store.load_state(7)["loss_scale"]
    return [state["value"], float(weights.double().sum())], bool(weights.isfinite().all())


def of_a_rank(folder: Path) -> tuple[list[Gradients], tuple[list[float], bool]]:
    return gradients(SETTINGS), overflow(folder)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[list[Gradients], tuple[list[float], bool]]]:
    """What two ranks have; to start them takes longer than all that they do."""
    return run_ranks(of_a_rank, 2, tmp_path_factory.mktemp("ranks"))


def test_ranks_have_the_gradient_of_one_process(ranks: list[Any]) -> None:
    torch.set_num_threads(1)
    plain, per_stage = gradients([{}]), 2 * len(SETTINGS)
    for found, _ in ranks:
        assert len(found) == 2 * per_stage
        for number, one in enumerate(found):
            expected = plain[2 * (number // per_stage)]
            size = max(float(gradient.abs().max()) for gradient in expected.values())
            assert one.keys() == expected.keys()
            for name, gradient in expected.items():
                assert (one[name] - gradient).abs().max() <= 1e-12 * size, (number, name)


def test_ranks_skip_the_same_steps(ranks: list[Any]) -> None:
    """Else their weights would part."""
    (_, first), (_, second) = ranks
    assert first == second
    assert first[1]
    assert first[0][0] < 2.0**16
