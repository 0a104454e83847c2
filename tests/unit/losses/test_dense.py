"""Dense correspondence: which points are negatives, and what happens when there are none."""

import math

import pytest
import torch

from hssl_dist.errors import ConfigError
from hssl_dist.losses.dense import contrasted_rows, dense_contrast, dense_contrast_across

LINE = torch.tensor([[[0.0, 0, 0], [0, 0, 3], [0, 0, 10]]])
ALIKE = torch.ones(1, 3, 2)
ALL = torch.ones(1, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("distance", "negatives_per_point"), [(3.0, (4, 4, 4)), (4.0, (2, 2, 4)), (8.0, (2, 2)), (0.0, (4, 4, 4))]
)
def test_negatives_lie_at_least_the_distance_away(
    distance: float, negatives_per_point: tuple[int, ...]
) -> None:
    """With all vectors alike a point with k negatives costs log(1 + k); one without any does not count."""
    loss = dense_contrast(ALIKE, ALIKE, LINE, ALL, temperature=0.1, distance=distance)
    expected = sum(math.log(1 + k) for k in negatives_per_point) / len(negatives_per_point)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_points_of_other_volumes_are_no_negatives() -> None:
    first, second = torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    one = dense_contrast(first, second, LINE, ALL, 0.2, 1.0)
    twice = dense_contrast(
        first.repeat(2, 1, 1), second.repeat(2, 1, 1), LINE.repeat(2, 1, 1), ALL.repeat(2, 1), 0.2, 1.0
    )
    torch.testing.assert_close(one, twice)


def test_views_are_exchangeable() -> None:
    first, second = torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        dense_contrast(first, second, LINE, ALL, 0.2, 1.0), dense_contrast(second, first, LINE, ALL, 0.2, 1.0)
    )


@pytest.mark.parametrize(
    ("valid", "distance"), [(torch.zeros(1, 3, dtype=torch.bool), 0.0), (ALL, 50.0)], ids=["invalid", "near"]
)
def test_without_negatives_loss_and_gradient_are_zero(valid: torch.Tensor, distance: float) -> None:
    points = torch.randn(1, 3, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = dense_contrast(points, points, LINE, valid, 0.1, distance)
    loss.backward()
    assert loss.item() == 0
    assert points.grad is not None
    assert not points.grad.any()


def test_invalid_points_have_no_influence() -> None:
    points = torch.randn(1, 3, 2, generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([[True, True, False]])
    changed = points.clone()
    changed[0, 2] = torch.tensor([5.0, -3.0])
    torch.testing.assert_close(
        dense_contrast(points, points, LINE, valid, 0.1, 0.5),
        dense_contrast(changed, changed, LINE, valid, 0.1, 0.5),
    )


@pytest.mark.parametrize(("distance", "rows"), [(0.0, 6), (3.0, 6), (8.0, 4), (11.0, 0)])
def test_rows_with_a_negative_are_counted_ahead(distance: float, rows: int) -> None:
    assert contrasted_rows(LINE, ALL, distance).item() == rows
    first, second = torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        dense_contrast(first, second, LINE, ALL, 0.2, distance, counted=torch.tensor(rows)),
        dense_contrast(first, second, LINE, ALL, 0.2, distance),
    )


def test_few_pools_at_a_time_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 7, 5, 4, generator=generator)
    places = 6 * torch.rand(7, 5, 3, generator=generator)
    valid = torch.rand(7, 5, generator=generator) > 0.2
    expected = dense_contrast(first, second, places, valid, 0.2, 3.0)
    for tile in (3, 10, 20):
        found = dense_contrast(first, second, places, valid, 0.2, 3.0, tile=tile)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("groups", "negatives_per_point"), [((0, 1), (8, 8, 10)), ((4, 4), (2, 2, 4))])
def test_points_of_other_volumes_are_negatives_if_asked(
    groups: tuple[int, int], negatives_per_point: tuple[int, ...]
) -> None:
    """Each point of the other volume is one whatever its place, unless the volumes are of one group."""
    both, line, valid = ALIKE.repeat(2, 1, 1), LINE.repeat(2, 1, 1), ALL.repeat(2, 1)
    loss = dense_contrast_across(
        both, both, line, valid, torch.tensor([7, 8]), torch.tensor(groups), temperature=0.1, distance=4.0
    )
    expected = sum(math.log(1 + k) for k in negatives_per_point) / len(negatives_per_point)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_a_temperature_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ConfigError, match="the temperature is -1; it must be positive"):
        dense_contrast(ALIKE, ALIKE, LINE, ALL, -1.0, 0.0)
