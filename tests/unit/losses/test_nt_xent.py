"""The image level in one process: gradients, extreme temperatures, half precision, edge cases."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hssl_dist.errors import ConfigError, TrainingError
from hssl_dist.losses.nt_xent import nt_xent


def dense(first: Tensor, second: Tensor, temperature: Tensor | float) -> Tensor:
    """The same loss with the whole matrix and autograd, accurate near zero too."""
    n = len(first)
    rows = F.normalize(torch.cat((first, second)), dim=1)
    logits = rows @ rows.T / temperature
    excluded = torch.eye(n, dtype=torch.bool).repeat(2, 2)
    negatives = logits.masked_fill(excluded, -torch.inf).logsumexp(1)
    return F.softplus(negatives - logits.diagonal(n).repeat(2)).mean()


def views(n: int, d: int, noise: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(n, d, generator=generator, dtype=torch.float64)
    second = first + noise * torch.randn(n, d, generator=generator, dtype=torch.float64)
    return first.to(dtype).requires_grad_(), second.to(dtype).requires_grad_()


def relative_l2(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("tile", [1, 3, 10, 100])
def test_tiles_do_not_change_value_or_gradient(tile: int) -> None:
    temperature = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    inputs = (*views(5, 8, noise=0.7), temperature)
    loss, expected = nt_xent(*inputs, tile=tile), dense(*inputs)
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)
    for found, wanted in zip(
        torch.autograd.grad(3 * loss, inputs), torch.autograd.grad(3 * expected, inputs), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-14)


def test_counts_that_are_known_change_nothing() -> None:
    inputs = (*views(5, 8, noise=0.7), torch.tensor(0.2, dtype=torch.float64, requires_grad=True))
    asked, known = nt_xent(*inputs), nt_xent(*inputs, counts=(5,))
    assert torch.equal(known, asked)
    for found, wanted in zip(
        torch.autograd.grad(known, inputs), torch.autograd.grad(asked, inputs), strict=True
    ):
        assert torch.equal(found, wanted)


def test_numerical_gradient() -> None:
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *x: nt_xent(*x, tile=3), (*views(4, 3, 0.5), temperature))


def test_gradient_is_right_when_the_loss_is_nearly_zero() -> None:
    """Loss about e^-45: the positive must not drown the negatives in one log-sum-exp."""
    exact = views(16, 64, noise=0.01)
    single = tuple(x.detach().float().requires_grad_() for x in exact)
    loss = nt_xent(*single, 0.02)
    assert 0 < loss.item() < 1e-12
    expected = torch.autograd.grad(dense(*exact, 0.02), exact)
    for found, wanted in zip(torch.autograd.grad(loss, single), expected, strict=True):
        assert relative_l2(found, wanted) <= 1e-4


def test_half_precision_embeddings() -> None:
    half = views(64, 32, noise=0.5, dtype=torch.bfloat16)
    exact = tuple(x.detach().double().requires_grad_() for x in half)
    loss = nt_xent(*half, 0.07)
    assert loss.dtype == torch.float32
    expected = torch.autograd.grad(dense(*exact, 0.07), exact)
    for found, wanted in zip(torch.autograd.grad(loss, half), expected, strict=True):
        assert found.dtype == torch.bfloat16
        assert relative_l2(found, wanted) <= 6e-3


def test_autocast_does_not_lower_the_precision() -> None:
    inputs = views(8, 16, 0.5, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent(*inputs, 0.1)
        found = torch.autograd.grad(loss, inputs)
    plain = nt_xent(*inputs, 0.1)
    assert torch.equal(loss, plain)
    assert all(map(torch.equal, found, torch.autograd.grad(plain, inputs)))


@pytest.mark.parametrize("temperature", [0.01, 0.001])
def test_low_temperatures_stay_finite(temperature: float) -> None:
    inputs = views(16, 8, noise=1.0, dtype=torch.float32)
    loss = nt_xent(*inputs, temperature)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(grad).all() for grad in torch.autograd.grad(loss, inputs))


def test_random_embeddings_cost_the_log_of_the_number_of_rows() -> None:
    same = torch.ones(6, 4, dtype=torch.float64)
    torch.testing.assert_close(nt_xent(same, same, 0.5).item(), float(torch.tensor(11.0).double().log()))


def test_length_of_an_embedding_does_not_matter() -> None:
    first, second = views(5, 8, 0.5)
    torch.testing.assert_close(nt_xent(7 * first, second / 3, 0.1), nt_xent(first, second, 0.1))


@pytest.mark.parametrize("n", [0, 1])
def test_a_batch_without_negatives_is_refused(n: int) -> None:
    with pytest.raises(TrainingError) as caught:
        nt_xent(*views(n, 4, 0.5), 0.1)
    assert str(caught.value) == (
        f"the contrastive loss got {n} regions over 1 ranks: there are no negatives; "
        "raise global_batch to 2 or more"
    )


@pytest.mark.parametrize("temperature", [0.0, -0.1, torch.tensor(-0.1)])
def test_a_temperature_that_is_not_positive_is_refused(temperature: Tensor | float) -> None:
    with pytest.raises(ConfigError, match=r"the temperature is -?0(\.1)?; it must be positive"):
        nt_xent(*views(3, 4, 0.5), temperature)


@pytest.mark.parametrize("tile", [3, 100])
def test_rows_of_one_group_are_no_negatives(tile: int) -> None:
    groups = torch.tensor([5, -2, 5, 7, -2, 2**62])
    temperature = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    inputs = (*views(6, 8, noise=0.7), temperature)
    first, second, _ = inputs
    rows = F.normalize(torch.cat((first, second)), dim=1)
    logits = rows @ rows.T / temperature
    terms = []
    for i in range(12):
        others = [j for j in range(12) if groups[j % 6] != groups[i % 6]]
        positive = logits[i, (i + 6) % 12]
        terms.append(torch.cat((positive[None], logits[i, others])).logsumexp(0) - positive)
    expected = torch.stack(terms).mean()
    loss = nt_xent(*inputs, groups=groups, tile=tile)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    for found, wanted in zip(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-14)


def test_groups_of_one_region_change_nothing_and_one_group_leaves_nothing() -> None:
    inputs = views(5, 8, 0.5)
    assert torch.equal(nt_xent(*inputs, 0.1, groups=torch.arange(5)), nt_xent(*inputs, 0.1))
    nothing = nt_xent(*inputs, 0.1, groups=torch.zeros(5, dtype=torch.int64))
    assert nothing.item() == 0
    assert all(not grad.any() for grad in torch.autograd.grad(nothing, inputs))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own look
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_code_around_it_gives_the_same(backend: str) -> None:
    weight = torch.randn(8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    temperature = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    inputs = (*views(5, 8, noise=0.7), temperature)

    def loss_of(first: Tensor, second: Tensor, temperature: Tensor) -> Tensor:
        return 2 * nt_xent((first @ weight).tanh(), (second @ weight).tanh(), temperature)

    loss, expected = torch.compile(loss_of, backend=backend)(*inputs), loss_of(*inputs)
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)
    for found, wanted in zip(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-15)
