"""Memory that does not suffice is told as such, whoever finds it out; other errors are not."""

import errno
from pathlib import Path

import numpy as np
import pytest
import torch

from hssl_dist.config.pretrain import SamplingConfig
from hssl_dist.errors import OutOfMemoryError
from hssl_dist.memory import within_memory
from hssl_dist.records import CaseRecord, Region
from hssl_dist.sampling.loader import PretrainingLoader
from hssl_dist.sampling.schedule import Schedule
from hssl_dist.store import StoredForm
from tests.tiny_pretraining import ArrayReader, manifests

SAID = "not enough memory for training; lower it, or use a larger machine"


def raise_(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    "act",
    [
        lambda: torch.empty(2**47),
        lambda: np.empty(2**60, np.uint8),
        lambda: raise_(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")),
        lambda: raise_(RuntimeError("CUDA error: out of memory")),
        lambda: raise_(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")),
        lambda: raise_(RuntimeError("std::bad_alloc")),
        lambda: raise_(OSError(errno.ENOMEM, "Cannot allocate memory")),
    ],
    ids=["torch", "numpy", "CUDA", "pinned", "cuDNN", "C++", "system"],
)
def test_out_of_memory_is_one_line_with_advice(act: object) -> None:
    with pytest.raises(OutOfMemoryError) as caught, within_memory("training", "lower it"):
        act()  # type: ignore[operator]
    assert str(caught.value) == SAID


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), OSError(errno.ENOSPC, "No space left"), ValueError("no")]
)
def test_other_errors_stay_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, within_memory("training", "lower it"):
        raise error
    assert caught.value is error


class HungryReader(ArrayReader):
    """A reader for whom memory does not suffice."""

    def fill_numbers(self, pairs: list[tuple[CaseRecord, Region]], out: np.ndarray) -> StoredForm:
        raise MemoryError


@pytest.mark.parametrize(("prefetch_batches", "remedy"), [(4, "read ahead"), (1, "takes")])
def test_a_loaders_thread_says_what_to_lower(prefetch_batches: int, remedy: str, tmp_path: Path) -> None:
    sampling = SamplingConfig(patch_size=(4, 8, 8), block_size=3, prefetch_batches=prefetch_batches)
    loader = PretrainingLoader(Schedule(manifests(), sampling, 0, 6), HungryReader())
    size = loader.batch_bytes
    with pytest.raises(OutOfMemoryError) as caught:
        next(loader.batches(0, 8))
    assert (
        str(caught.value)
        == {
            "read ahead": (
                f"not enough memory for reading ahead; 4 batches of {size} bytes are read ahead: set "
                f"sampling.prefetch_bytes to {2 * size}, which does not change the result, or use a larger "
                "machine"
            ),
            "takes": (
                f"not enough memory for reading ahead; a batch of this rank takes {size} bytes: lower "
                "sampling.patch_size or global_batch, or use a larger machine"
            ),
        }[remedy]
    )
