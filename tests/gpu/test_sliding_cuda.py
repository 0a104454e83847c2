"""Sliding windows on CUDA against the same on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hssl_dist.segmentation import Windows, logit_slabs
from tests.tiny_model import tiny_network

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("flips", [(), (0, 2)])
def test_logits_are_those_of_the_cpu(flips: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).standard_normal((1, 21, 30, 17), dtype=np.float32)
    windows = Windows((8, 16, 16), flips=flips)
    there, here = (
        np.concatenate(list(logit_slabs(tiny_network().to(device), image, windows, device)), axis=1)
        for device in (torch.device("cuda"), torch.device("cpu"))
    )
    np.testing.assert_allclose(there, here, rtol=1e-2, atol=1e-2)  # TF32 may be on
    assert (there.argmax(axis=0) == here.argmax(axis=0)).mean() > 0.99
