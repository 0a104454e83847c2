"""Pretraining with too little memory, for real (RLIMIT_AS): one line with advice, on all ranks and Ray."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hssl_dist.config.pretrain import SamplingConfig
from hssl_dist.console import Console
from hssl_dist.errors import OutOfMemoryError
from hssl_dist.jobs import pretrain
from tests.tiny_pretraining import job_config, write_store

LIMITED = str(Path(__file__).with_name("limited.py"))
ROOM_BYTES = 1 << 30
BIG = SamplingConfig(patch_size=(32, 256, 512), block_size=3)  # a step takes some GB, reading it does not
HUGE = SamplingConfig(patch_size=(2**15, 2**15, 2**15), block_size=3)  # more than a machine can address


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    write_store(str(folder / "store"))
    return folder


def limited(
    root: Path, name: str, rank: str = "", ranks: int = 0, **changes: Any
) -> "subprocess.CompletedProcess[str]":
    path = root / f"{name}.json"
    path.write_text(job_config(root, name, collective_timeout_s=120.0, **changes).model_dump_json())
    torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"] if ranks else []
    return subprocess.run(
        [sys.executable, *torchrun, LIMITED, rank, str(ROOM_BYTES), "--config", str(path), "--json"],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        check=False,
    )


def test_a_step_that_takes_too_much_says_which_micro_batch_to_try(root: Path) -> None:
    done = limited(root, "step", sampling=BIG, global_batch=4)
    said = (
        "not enough memory for training; set micro_batch to 2 (it is 4, a rank's whole share of "
        "global_batch), which does not change the result, then lower sampling.patch_size, or use a "
        "larger machine"
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1] == f"hssl pretrain: error: {said}"
    assert "Traceback" not in done.stderr
    found = json.loads(done.stdout)
    assert (found["error"], found["kind"]) == (said, "OutOfMemoryError")


def test_a_torchrun_rank_with_too_little_memory_ends_the_job_with_a_line(root: Path) -> None:
    """What the other ranks say is in `tests/distributed/test_watchdog.py`: torchrun may end them before."""
    done = limited(root, "ranks", rank="1", ranks=2, sampling=BIG, global_batch=4, micro_batch=1)
    assert done.returncode == 1, done.stderr
    said = (
        "hssl pretrain: error: not enough memory for training; lower sampling.patch_size (micro_batch is 1 "
        "already), or use a larger machine"
    )
    assert said in done.stderr.splitlines(), done.stderr
    assert "Traceback" not in done.stderr.partition(said)[0]


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")
def test_ray_does_not_start_again_what_memory_does_not_suffice_for(root: Path) -> None:
    with pytest.raises(OutOfMemoryError, match=r"^not enough memory for reading ahead; a batch of this rank"):
        pretrain.run(job_config(root, "huge", runner="ray", workers=2, sampling=HUGE), Console())
