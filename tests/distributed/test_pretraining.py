"""Pretraining on several ranks is the pretraining of one process: same losses, same weights, same resume."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hssl_dist import collectives
from hssl_dist.config.pretrain import CheckpointConfig, StageConfig
from hssl_dist.errors import CheckpointError, ConfigError, Interrupted, NonFiniteError
from hssl_dist.sampling.loader import PretrainingLoader, Regions
from hssl_dist.sampling.schedule import Schedule
from hssl_dist.training.checkpoint import CheckpointStore
from hssl_dist.training.loop import run_pretraining
from tests.distributed.ranks import run_ranks
from tests.tiny_pretraining import ArrayReader, Recorder, config, manifests

BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-3}
LOSSES = ("loss", "loss_image", "loss_task", "loss_group", "loss_dense", "loss_restoration")

Curve = dict[int, dict[str, float]]


def train(folder: Path, dtype: torch.dtype, stop_at: int | None = None) -> tuple[Curve, dict[str, Tensor]]:
    """Losses, accuracies and weights of a run; only rank `world_size - 1` is told to stop."""
    settings = config(encoder=StageConfig(steps=5, learning_rate=1e-3, warmup_steps=1), global_batch=7)
    recorder = Recorder()
    if collectives.rank() == collectives.world_size() - 1 and stop_at is not None:
        steps = iter(range(1, 100))
        recorder.should_stop = lambda: next(steps) == stop_at  # type: ignore[method-assign]
    try:
        result = run_pretraining(
            settings,
            manifests(),
            ArrayReader(),
            CheckpointStore(str(folder)),
            recorder,
            torch.device("cpu"),
            dtype=dtype,
        )
    except Interrupted:
        return {}, {}
    curve = {
        step: {key: value for key, value in metrics.items() if key in LOSSES or key.endswith("accuracy")}
        for step, metrics in result.history
    }
    return curve, {name: value.detach().clone() for name, value in result.network.named_parameters()}


def assert_equal_runs(one: Any, other: Any, bound: float) -> None:
    assert one[0].keys() == other[0].keys() == set(range(1, 9))
    for step, metrics in one[0].items():
        assert metrics == pytest.approx(other[0][step], rel=bound), step
    for name, value in one[1].items():
        if name.endswith("conv.bias") and value.dtype == torch.float32:
            continue  # Instance norm cancels it: its gradient is rounding noise, which AdamW scales up.
        assert torch.allclose(value, other[1][name], rtol=bound, atol=bound), name


@pytest.mark.parametrize(("dtype", "world_sizes"), [(torch.float64, (2, 3)), (torch.float32, (2,))])
def test_ranks_follow_one_process(tmp_path: Path, dtype: torch.dtype, world_sizes: tuple[int, ...]) -> None:
    torch.set_num_threads(1)
    alone = train(tmp_path / "1", dtype)
    for world_size in world_sizes:
        ranks = run_ranks(train, world_size, tmp_path / str(world_size), dtype)
        assert_equal_runs(ranks[0], alone, BOUNDS[dtype])
        for _, weights in ranks[1:]:
            assert all(torch.equal(value, ranks[0][1][name]) for name, value in weights.items())


def test_a_run_moves_between_world_sizes(tmp_path: Path) -> None:
    """Stopped by its last rank after step 3 on two ranks, after step 6 in one process, ended on two ranks."""
    dtype = torch.float64
    torch.set_num_threads(1)
    alone = train(tmp_path / "alone", dtype)
    folder = tmp_path / "moved"
    assert run_ranks(train, 2, folder, dtype, 3) == [({}, {})] * 2
    assert CheckpointStore(str(folder)).latest() == 3
    assert train(folder, dtype, 3) == ({}, {})
    assert CheckpointStore(str(folder)).latest() == 6
    assert_equal_runs(run_ranks(train, 2, folder, dtype)[0], alone, BOUNDS[dtype])


def test_a_run_of_two_ranks_goes_on_with_three(tmp_path: Path) -> None:
    dtype = torch.float64
    torch.set_num_threads(1)
    alone = train(tmp_path / "alone", dtype)
    folder = tmp_path / "grown"
    assert run_ranks(train, 2, folder, dtype, 4) == [({}, {})] * 2
    assert CheckpointStore(str(folder)).latest() == 4
    assert_equal_runs(run_ranks(train, 3, folder, dtype)[0], alone, BOUNDS[dtype])


def refuse(folder: Path) -> tuple[str, str]:
    """What is said of a case that is not finite, and of a batch that is too small."""
    store, device = CheckpointStore(str(folder)), torch.device("cpu")
    with pytest.raises(NonFiniteError) as poisoned:
        run_pretraining(
            config(),
            manifests(),
            ArrayReader("liver/case_1"),
            store,
            Recorder(),
            device,
            run_folder=str(folder),
        )
    with pytest.raises(ConfigError) as small:
        run_pretraining(config(global_batch=2), manifests(), ArrayReader(), store, Recorder(), device)
    return str(poisoned.value), str(small.value)


def assert_saved_as_loaded(run_folder: Path, said: str) -> None:
    """All samples of the poisoned case, wherever they were, as the loader of one process gives them."""
    (folder,) = (run_folder / "not-finite").iterdir()
    assert said.endswith(f"; samples are saved in {folder}")
    step, settings = int(folder.name.removeprefix("step-")), config()
    schedule = Schedule(manifests(), settings.sampling, settings.seed, settings.global_batch)
    batch = next(PretrainingLoader(schedule, ArrayReader("liver/case_1")).batches(step, step + 1))
    bad = [i for i in batch.indices if schedule.draw(step, i).record.id == "case_1"]
    bad = [i for i in bad if schedule.draw(step, i).record.dataset == "liver"]
    assert sorted(path.name for path in folder.glob("*.safetensors")) == [
        f"sample-{index:05d}.safetensors" for index in bad
    ]
    for index in bad:
        saved = Regions(**load_file(folder / f"sample-{index:05d}.safetensors"))
        assert torch.equal(saved.numbers, batch.regions.numbers[index : index + 1])
        assert saved.factors.isnan().all()
        assert saved.values().isnan().all()


def test_all_ranks_refuse_with_the_same_words(tmp_path: Path) -> None:
    said = run_ranks(refuse, 3, tmp_path)
    assert said[0] == said[1] == said[2]
    assert "with samples of liver/case_1;" in said[0][0]
    assert_saved_as_loaded(tmp_path, said[0][0])
    assert said[0][1] == "global_batch 2 cannot be split over 3 ranks; start fewer ranks"


def without_room(folder: Path) -> tuple[str, str]:
    """What is said where checkpoints cannot be saved: time and again, and at a stop."""

    def put(url: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store, device = CheckpointStore(str(folder), put=put), torch.device("cpu")
    often = config(checkpoint=CheckpointConfig(every_steps=1, max_failures=2))
    stopping = Recorder(stop_at=1) if collectives.rank() == 1 else Recorder()
    said = []
    for settings, recorder in ((often, Recorder()), (config(), stopping)):
        with pytest.raises(CheckpointError) as refused:
            run_pretraining(settings, manifests(), ArrayReader(), store, recorder, device)
        said.append(str(refused.value))
    return said[0], said[1]


def test_all_ranks_end_where_rank_0_cannot_save(tmp_path: Path) -> None:
    first, second = run_ranks(without_room, 2, tmp_path)
    assert first == second
    assert first[0].startswith("2 checkpoints in a row could not be saved, the last because no space for")
    assert first[1].startswith("no space for the checkpoint of step 1 in ")
