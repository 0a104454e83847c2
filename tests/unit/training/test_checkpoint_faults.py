"""Checkpoints of real processes that are killed, run into limits, or may not write where they should."""

from __future__ import annotations

import os
import resource
import signal
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from hssl_dist import files
from hssl_dist.errors import CheckpointError
from hssl_dist.training.checkpoint import Checkpoint, CheckpointStore
from hssl_dist.training.loop import PretrainingResult, run_pretraining
from tests.tiny_pretraining import ArrayReader, Recorder, config, manifests

NOBODY = 65534
SPEED = {
    "samples_per_s",
    "data_wait_share",
    "cache_hit_share",
    "bytes_fetched_per_byte_used",
    "requests_per_region",
}


def checkpoint(step: int, count: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    return Checkpoint(step, {"w": torch.randn(count, generator=generator)}, {}, {"step": step})


def in_a_process(function: Any, *arguments: Any) -> Any:
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result(timeout=240)


# ------------------------------------------------------------------------------------------------- full disks


def save_below_a_limit(url: str) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
    with pytest.raises(CheckpointError) as refused:
        CheckpointStore(url, files.Backoff(first_s=1e6)).save(checkpoint(2, 1 << 16))
    return str(refused.value)


def test_a_file_size_limit_is_no_space_and_the_older_checkpoint_stays(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    store.save(checkpoint(1, 1 << 16))
    said = in_a_process(save_below_a_limit, str(tmp_path))
    folder = tmp_path / "step-00000002"
    assert said.startswith(f"no space for the checkpoint of step 2 in {folder}: [Errno 27] File too large")
    assert list(folder.iterdir()) == []
    assert store.latest() == 1
    assert torch.equal(store.load(1).model["w"], checkpoint(1, 1 << 16).model["w"])


# ---------------------------------------------------------------------------------------------------- refusal


def save_as_nobody(url: str) -> str:
    if os.getuid() == 0:  # whom permissions do not hold up
        with tempfile.TemporaryDirectory() as elsewhere:
            CheckpointStore(elsewhere).save(checkpoint(1, 4))  # imports all that nobody may not read
        os.setuid(NOBODY)
    with pytest.raises(CheckpointError) as refused:
        CheckpointStore(url, files.Backoff(first_s=1e6)).save(checkpoint(2, 4))
    return str(refused.value)


def test_a_read_only_folder_is_one_clear_error_at_once() -> None:
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        folder = Path(place) / "checkpoints"
        store = CheckpointStore(str(folder))
        store.save(checkpoint(1, 4))
        folder.chmod(0o555)
        try:
            said = in_a_process(save_as_nobody, str(folder))
        finally:
            folder.chmod(0o755)
        assert said.startswith(
            f"the checkpoint of step 2 cannot be saved at {folder}: [Errno 13] Permission denied"
        )
        assert said.endswith("older checkpoints are intact")
        assert store.steps() == [1]
        assert store.load(1).step == 1


# ----------------------------------------------------------------------------------------------------- killed


class Killing(Recorder):
    """Ends the process at a step, as the kernel ends one that has no more memory."""

    def __init__(self, at_step: int | None) -> None:
        super().__init__()
        self.at_step = at_step

    def on_step(self, step: int) -> None:
        super().on_step(step)
        if step == self.at_step:
            os.kill(os.getpid(), signal.SIGKILL)


def pretrain(folder: str, at_step: int | None = None, in_file: str | None = None) -> PretrainingResult:
    """The tiny run; killed after a step, or with half of a file written, `<step folder>/<name>`."""
    torch.set_num_threads(1)

    def put(url: str, data: bytes) -> None:
        if in_file is not None and url.endswith(in_file):
            target = Path(url)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.with_name(f".{target.name}.{os.getpid()}.partial").open("wb") as stream:
                stream.write(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        files.write(url, data, durable=True)

    store = CheckpointStore(folder, put=put)
    device = torch.device("cpu")
    return run_pretraining(config(), manifests(), ArrayReader(), store, Killing(at_step), device)


@pytest.mark.parametrize(
    ("at_step", "in_file", "resumed_from"),
    [
        (5, None, (4,)),
        (3, None, (2, None)),  # the write of step 2 may still have been under way
        (None, "step-00000004/model.safetensors", (2,)),
        (None, "step-00000006/commit.json", (4,)),
    ],
)
def test_a_killed_run_ends_as_one_that_was_not(
    tmp_path: Path, at_step: int | None, in_file: str | None, resumed_from: tuple[int | None, ...]
) -> None:
    """Steps 2, 4, 6 and 7 are saved; 4 ends the encoder stage."""
    folder = tmp_path / "killed"
    process = get_context("spawn").Process(target=pretrain, args=(str(folder), at_step, in_file))
    process.start()
    process.join(timeout=240)
    assert process.exitcode == -signal.SIGKILL
    store = CheckpointStore(str(folder))
    assert store.latest() in resumed_from
    if in_file is not None:
        assert (folder / in_file).parent.is_dir()
        assert not (folder / in_file).exists()
    threads = torch.get_num_threads()
    try:
        resumed, whole = pretrain(str(folder)), pretrain(str(tmp_path / "whole"))
    finally:
        torch.set_num_threads(threads)
    assert losses(resumed) == losses(whole)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name
    assert store.steps()[-1] == 7
    one, other = store.load(7), CheckpointStore(str(tmp_path / "whole")).load(7)
    for name, value in one.optimizer.items():
        assert torch.equal(value, other.optimizer[name]), name


def losses(result: PretrainingResult) -> list[tuple[int, dict[str, float]]]:
    return [
        (step, {key: value for key, value in metrics.items() if key not in SPEED})
        for step, metrics in result.history
    ]
