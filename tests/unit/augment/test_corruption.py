import pytest
import torch

from hssl_dist.augment import mask_blocks


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.4, 0.75, 1.0])
@pytest.mark.parametrize("size", [(16, 48, 48), (7, 20, 33), (2, 12, 12)])
def test_about_the_asked_share_is_masked(size, fraction):
    _, mask = mask_blocks(torch.randn(12, 1, *size), range(12), fraction)

    shares = mask.float().mean((1, 2, 3, 4))
    assert abs(shares.mean() - fraction) < 0.03
    assert (shares - fraction).abs().max() < 0.12


def test_whole_blocks_of_an_even_grid_are_masked_exactly():
    _, mask = mask_blocks(torch.randn(5, 1, 12, 24, 24), range(5), 0.5)

    assert mask.flatten(1).sum(1).eq(12 * 24 * 24 // 2).all()
    changes = (mask != mask.roll(1, dims=4)).sum((1, 2, 3))[:, :].bool().sum(1)
    assert changes.max() <= 6  # borders between blocks along x lie in at most six places


def test_visible_voxels_keep_their_values_but_for_a_little_noise():
    images = 5 + 2 * torch.randn(3, 2, 12, 24, 24)

    corrupted, mask = mask_blocks(images, range(3), 0.4)

    difference = (corrupted - images) / 2
    hidden = mask.expand_as(images)
    assert abs(difference[~hidden].std() - 0.1) < 0.01
    assert difference[~hidden].abs().max() < 0.7
    assert torch.corrcoef(torch.stack([corrupted[hidden], images[hidden]]))[0, 1].abs() < 0.05
    assert abs(corrupted[hidden].mean() - 5) < 0.1
    assert abs(corrupted[hidden].std() - 2) < 0.1


def test_a_sample_does_not_depend_on_the_rest_of_its_batch():
    images, seeds = torch.randn(5, 1, 8, 16, 16), [11, 5, 9, 1, 4]

    corrupted, mask = mask_blocks(images, seeds, 0.4)

    for index, seed in enumerate(seeds):
        alone, alone_mask = mask_blocks(images[index : index + 1], [seed], 0.4)
        assert torch.equal(mask[index], alone_mask[0])
        torch.testing.assert_close(corrupted[index], alone[0], atol=1e-6, rtol=0)
    assert not torch.equal(mask[0], mask[1])


def test_noise_alone_is_as_strong_as_asked():
    images = 5 + 2 * torch.randn(3, 2, 12, 24, 24)

    corrupted, mask = mask_blocks(images, range(3), fraction=0.0, noise=0.5)

    assert not mask.any()
    assert abs(((corrupted - images) / 2).std() - 0.5) < 0.02
    assert torch.equal(mask_blocks(images, range(3), 0.0, noise=0.0)[0], images)
