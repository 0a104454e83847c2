"""The losses on CUDA against the same in float64 on the CPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hssl_dist.losses.dense import dense_contrast, dense_contrast_across
from hssl_dist.losses.nt_xent import nt_xent

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

REGIONS, POINTS, SIZE = 300, 6, 32
GROUPS = torch.arange(REGIONS) // 3
PLACES = 10 * torch.rand(REGIONS, POINTS, 3, generator=torch.Generator().manual_seed(1))
VALID = torch.rand(REGIONS, POINTS, generator=torch.Generator().manual_seed(2)) > 0.2

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def image(first: Tensor, second: Tensor, temperature: Tensor) -> Tensor:
    return nt_xent(first[:, 0], second[:, 0], temperature, tile=128)


def image_in_one_tile(first: Tensor, second: Tensor, temperature: Tensor) -> Tensor:
    return nt_xent(first[:, 0], second[:, 0], temperature)


def image_of_groups(first: Tensor, second: Tensor, temperature: Tensor) -> Tensor:
    return nt_xent(first[:, 0], second[:, 0], temperature, groups=GROUPS.to(first.device), tile=128)


def dense(first: Tensor, second: Tensor, temperature: Tensor) -> Tensor:
    return dense_contrast(first, second, PLACES.to(first.device), VALID.to(first.device), temperature, 4.0)


def dense_across(first: Tensor, second: Tensor, temperature: Tensor) -> Tensor:
    places, valid, groups = (x.to(first.device) for x in (PLACES, VALID, GROUPS))
    numbers = torch.arange(REGIONS, device=first.device)
    return dense_contrast_across(first, second, places, valid, numbers, groups, temperature, 4.0, tile=512)


def value_and_gradients(loss_of: Loss, device: str, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(REGIONS, POINTS, SIZE, generator=generator)
    second = first + 0.5 * torch.randn(REGIONS, POINTS, SIZE, generator=generator)
    inputs = [x.to(dtype).to(device).requires_grad_() for x in (first.bfloat16(), second.bfloat16())]
    temperature = torch.tensor(0.125, dtype=torch.promote_types(dtype, torch.float32), device=device)
    inputs.append(temperature.requires_grad_())
    loss = loss_of(*inputs)
    return [x.detach().double().cpu() for x in (loss, *torch.autograd.grad(loss, inputs))]


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 6e-3)],
    ids=["float64", "float32", "bfloat16"],
)
@pytest.mark.parametrize("loss_of", [image, image_in_one_tile, image_of_groups, dense, dense_across])
def test_cuda_gives_what_the_cpu_gives_in_float64(loss_of: Loss, dtype: torch.dtype, bound: float) -> None:
    expected = value_and_gradients(loss_of, "cpu", torch.float64)
    for found, wanted in zip(value_and_gradients(loss_of, "cuda", dtype), expected, strict=True):
        assert (found - wanted).norm() <= bound * wanted.norm()


def test_memory_grows_with_the_rows_and_not_with_their_square() -> None:
    rows = 65536
    generator = torch.Generator("cuda").manual_seed(0)
    views = torch.randn(2, rows // 2, 128, device="cuda", generator=generator).requires_grad_()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    nt_xent(views[0], views[1], 0.1).backward()
    grown = torch.cuda.max_memory_allocated() - before
    tiles, whole = 8 * 4096**2 * 4, rows**2 * 4
    assert grown <= tiles + 12 * rows * 128 * 4 < whole / 10
