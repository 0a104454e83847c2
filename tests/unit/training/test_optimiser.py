"""The optimiser against torch's own AdamW, its state, and the schedule's values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hssl_dist.errors import CheckpointError
from hssl_dist.training.optimiser import Optimiser, learning_rate_at


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def rate_of(name: str) -> float:
    return 0.25 if name.startswith("0.") else 1.0


def backward(network: nn.Module, step: int) -> None:
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
    network(inputs).square().sum().backward()


def train(network: nn.Module, optimiser: Optimiser, steps: range) -> None:
    for step in steps:
        optimiser.zero_grad()
        backward(network, step)
        optimiser.clip(2.0)
        optimiser.step(0.01 * (step + 1))


def test_updates_equal_plain_adamw() -> None:
    ours, theirs = small_network(), small_network()
    train(ours, Optimiser(ours, weight_decay=0.1, rate_of=rate_of), range(3))
    weights = {name: value for name, value in theirs.named_parameters() if value.ndim > 1}
    others = {name: value for name, value in theirs.named_parameters() if value.ndim <= 1}
    reference = torch.optim.AdamW(
        [{"params": [value], "weight_decay": 0.1, "name": name} for name, value in weights.items()]
        + [{"params": [value], "weight_decay": 0.0, "name": name} for name, value in others.items()]
    )
    for step in range(3):
        reference.zero_grad()
        backward(theirs, step)
        nn.utils.clip_grad_norm_(theirs.parameters(), 2.0)
        for group in reference.param_groups:
            group["lr"] = 0.01 * (step + 1) * rate_of(group["name"])
        reference.step()
    for name, value in ours.named_parameters():
        assert torch.allclose(value, theirs.get_parameter(name), rtol=1e-6, atol=1e-7)


def test_state_by_name_continues_exactly() -> None:
    whole = small_network()
    train(whole, Optimiser(whole, weight_decay=0.1), range(4))

    first = small_network()
    optimiser = Optimiser(first, weight_decay=0.1)
    assert optimiser.state() == {}
    train(first, optimiser, range(2))
    saved: dict[str, Tensor] = {name: value.clone() for name, value in optimiser.state().items()}
    assert set(saved) == {
        f"{moment}/{name}"
        for name, _ in first.named_parameters()
        for moment in ("exp_avg", "exp_avg_sq", "step")
    }
    second = small_network()
    second.load_state_dict(first.state_dict())
    resumed = Optimiser(second, weight_decay=0.1)
    resumed.load_state(saved)
    train(second, resumed, range(2, 4))
    for name, value in second.named_parameters():
        assert torch.equal(value, whole.get_parameter(name))


def test_frozen_parameters_are_left_out() -> None:
    network = small_network()
    network[0].requires_grad_(False)
    before = network[0].weight.clone()
    train(network, Optimiser(network, weight_decay=0.1), range(2))
    assert torch.equal(network[0].weight, before)


def test_state_of_another_network_is_refused() -> None:
    network = small_network()
    optimiser = Optimiser(network, weight_decay=0.0)
    with pytest.raises(CheckpointError, match=r"18 entries differ, exp_avg/0\.bias first"):
        optimiser.load_state({})


def test_the_schedule_warms_up_then_follows_a_cosine() -> None:
    rates = [learning_rate_at(step, peak=2.0, warmup_steps=3, steps=11) for step in range(12)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[7] == pytest.approx(1.0)
    assert rates[11] == pytest.approx(0.0)
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_a_schedule_without_warm_up_starts_at_the_peak() -> None:
    assert learning_rate_at(0, peak=0.3, warmup_steps=0, steps=1) == 0.3


def test_a_run_shorter_than_its_warm_up_stays_in_it() -> None:
    assert learning_rate_at(1, peak=1.0, warmup_steps=9, steps=2) == pytest.approx(0.2)


def test_fused_updates_are_those_of_the_others_but_for_rounding() -> None:
    networks = {fused: small_network() for fused in (True, False)}
    for fused, network in networks.items():
        optimiser = Optimiser(network, weight_decay=0.1, rate_of=rate_of, fused=fused)
        assert optimiser.fused is fused
        train(network, optimiser, range(5))
    for name, value in networks[True].named_parameters():
        torch.testing.assert_close(value, networks[False].get_parameter(name), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True)])
def test_a_saved_state_is_the_same_fused_or_not(before: bool, after: bool) -> None:
    whole = small_network()
    train(whole, Optimiser(whole, weight_decay=0.1, fused=before), range(5))

    network = small_network()
    first = Optimiser(network, weight_decay=0.1, fused=before)
    train(network, first, range(2))
    saved = {name: value.clone() for name, value in first.state().items()}
    second = Optimiser(network, weight_decay=0.1, fused=after)
    second.load_state(saved)
    assert {name: (value.dtype, value.shape) for name, value in second.state().items()} == {
        name: (value.dtype, value.shape) for name, value in saved.items()
    }
    train(network, second, range(2, 5))
    for name, value in network.named_parameters():
        torch.testing.assert_close(value, whole.get_parameter(name), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("fused", [True, False])
def test_a_skipped_first_step_leaves_the_state_that_the_next_begins_with(fused: bool) -> None:
    whole, network = small_network(), small_network()
    train(whole, Optimiser(whole, weight_decay=0.1, fused=fused), range(3))
    skipping = Optimiser(network, weight_decay=0.1, fused=fused)
    skipping.skip()
    saved = skipping.state()
    assert len(saved) == 18
    assert not any(value.any() for value in saved.values())
    resumed = Optimiser(network, weight_decay=0.1, fused=fused)
    resumed.load_state(saved)
    train(network, resumed, range(1))
    before = {name: value.clone() for name, value in resumed.state().items()}
    resumed.skip()  # and a later one leaves what is there
    assert all(torch.equal(value, before[name]) for name, value in resumed.state().items())
    train(network, resumed, range(1, 3))
    for name, value in network.named_parameters():
        assert torch.equal(value, whole.get_parameter(name))


def test_scaled_gradients_are_clipped_as_plain_ones() -> None:
    networks, norms = (small_network(), small_network()), []
    for network, scale in zip(networks, (1.0, 4096.0), strict=True):
        (scale * network(torch.ones(2, 3)).square().sum()).backward()
        norms.append(float(Optimiser(network, weight_decay=0.0).clip(0.5, scale)))
    assert norms[0] > 0.5
    assert norms[1] == pytest.approx(norms[0])
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
