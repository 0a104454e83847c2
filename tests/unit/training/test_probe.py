"""The linear probe: what it can tell, and that it is not told the answer."""

import torch

from hssl_dist.training.probe import probe_accuracy

HALF = torch.arange(60) % 2 == 0


def test_what_is_linear_in_the_features_is_told() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 3, (60,), generator=generator)
    directions = torch.randn(3, 10, generator=generator)
    features = 100 + 1e-3 * (directions[targets] + 0.1 * torch.randn(60, 10, generator=generator))
    assert probe_accuracy(features, targets, HALF) == 1.0


def test_many_noise_features_tell_nothing_of_the_other_half() -> None:
    """200 features could learn 30 rows by heart; the rows left out show it."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(60) // 30
    accuracy = probe_accuracy(torch.randn(60, 200, generator=generator), targets, HALF)
    assert 0.3 < accuracy < 0.7


def test_features_without_variance_give_the_most_frequent_class() -> None:
    targets = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1])
    half = torch.arange(8) % 2 == 0
    assert probe_accuracy(torch.ones(8, 4), targets, half) == 0.75


def test_a_class_that_the_fitted_half_lacks_counts_as_wrong() -> None:
    targets = torch.tensor([0, 0, 0, 1])
    features = torch.nn.functional.one_hot(targets).float()
    assert probe_accuracy(features, targets, torch.arange(4) % 2 == 0) == 0.75
