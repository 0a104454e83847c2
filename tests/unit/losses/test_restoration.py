"""Restoration counts masked voxels only."""

import torch

from hssl_dist.losses.restoration import restoration, restoration_target


def test_mean_over_masked_voxels_of_all_channels() -> None:
    target = torch.zeros(1, 2, 1, 2, 2)
    restored = torch.arange(8.0).reshape(1, 2, 1, 2, 2)
    mask = torch.tensor([[True, False], [False, True]]).reshape(1, 1, 1, 2, 2)
    assert float(restoration(restored, target, mask)) == (0 + 9 + 16 + 49) / 4


def test_nothing_masked_costs_nothing_even_where_the_network_fails() -> None:
    restored = torch.full((1, 1, 1, 2, 2), torch.inf, requires_grad=True)
    loss = restoration(restored, torch.zeros(1, 1, 1, 2, 2), torch.zeros(1, 1, 1, 2, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert not restored.grad.any()


def test_the_target_knows_no_level_and_no_contrast() -> None:
    image = torch.randn(2, 1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    target = restoration_target(image)
    torch.testing.assert_close(restoration_target(7 * image - 3), target)
    torch.testing.assert_close(target.mean(dim=(2, 3, 4)), torch.zeros(2, 1))
    torch.testing.assert_close(target.square().mean(dim=(2, 3, 4)), torch.ones(2, 1))
    assert not restoration_target(torch.full((1, 1, 2, 2, 2), 4.0)).any()
