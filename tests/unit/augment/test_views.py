import itertools

import pytest
import torch

from hssl_dist.augment import matching_points, sample_points, sample_seed, two_views
from hssl_dist.augment.affine import apply_maps
from hssl_dist.config.pretrain import ViewConfig

PATCH, REGION = (8, 16, 16), (12, 24, 24)
GEOMETRY_ONLY = ViewConfig(noise=0, blur=0, low_resolution=0, contrast=0, brightness=0, gamma=0)
STRONG = ViewConfig(blur=0.5, low_resolution=0.5)


def seeds_of(count):
    return [sample_seed(7, 3, index) for index in range(count)]


def ramps(size):
    """Three images whose values are their voxels' z, y and x."""
    return torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in size), indexing="ij"))[:, None]


def grid_of(size):
    return torch.cartesian_prod(*(torch.arange(float(n)) for n in size))


def inside(points, size, slack=0.0):
    last = torch.tensor(size) - 1
    return ((points >= -slack) & (points <= last + slack)).all(-1)


def test_views_have_the_size_asked_for_and_differ():
    views = two_views(torch.randn(3, 1, *REGION), seeds_of(3), PATCH, ViewConfig())

    assert views.first.shape == views.second.shape == (3, 1, *PATCH)
    assert views.region_size == REGION
    assert all(not torch.allclose(a, b) for a, b in itertools.combinations([*views.first, *views.second], 2))


def test_a_sample_does_not_depend_on_the_rest_of_its_batch():
    regions, seeds = torch.randn(5, 1, *REGION), seeds_of(5)

    together = two_views(regions, seeds, PATCH, STRONG)
    apart = [two_views(regions[i : i + 1], seeds[i : i + 1], PATCH, STRONG) for i in range(5)]

    for name in ("first", "second", "first_to_region", "second_to_region"):
        separate = torch.cat([getattr(views, name) for views in apart])
        torch.testing.assert_close(getattr(together, name), separate, atol=2e-6, rtol=0)


def test_mixed_precision_around_them_does_not_change_the_views():
    regions, seeds = torch.randn(4, 1, *REGION), seeds_of(4)

    plain = two_views(regions, seeds, PATCH, STRONG)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = two_views(regions, seeds, PATCH, STRONG)

    assert torch.equal(plain.first, mixed.first)
    assert torch.equal(plain.second, mixed.second)


@pytest.mark.parametrize("view", ["first", "second"])
def test_maps_tell_exactly_where_each_voxel_comes_from(view):
    seed = seeds_of(20)
    for number in seed:
        views = two_views(ramps(REGION), [number] * 3, PATCH, GEOMETRY_ONLY)
        places = apply_maps(getattr(views, f"{view}_to_region")[:1], grid_of(PATCH)[None])[0]
        values = getattr(views, view)[:, 0].flatten(1).T

        known = inside(places, REGION)
        assert known.float().mean() > 0.6
        torch.testing.assert_close(values[known], places[known], atol=2e-4, rtol=0)


def test_two_views_share_enough_of_the_region():
    views = two_views(torch.zeros(300, 1, *REGION), seeds_of(300), PATCH, ViewConfig())

    points = matching_points(views, PATCH, 2048, seeds_of(300))

    shared = points.valid.float().mean(1)
    assert shared.min() > 0.15
    assert shared.mean() > 0.5


def test_matching_points_show_the_same_place():
    regions = torch.nn.functional.avg_pool3d(torch.randn(6, 1, *REGION), 3, 1, 1)
    views = two_views(regions, seeds_of(6), PATCH, GEOMETRY_ONLY)

    points = matching_points(views, PATCH, 64, seeds_of(6))

    assert points.valid.all()
    from_first = apply_maps(views.first_to_region, points.first)
    from_second = apply_maps(views.second_to_region, points.second)
    torch.testing.assert_close(from_first, points.region, atol=1e-4, rtol=0)
    torch.testing.assert_close(from_second, points.region, atol=1e-4, rtol=0)
    assert torch.equal(points.first, points.first.round())
    assert inside(points.first, PATCH).all()
    assert inside(points.second, PATCH).all()
    for sample in points.first:
        assert len(sample.unique(dim=0)) == 64


def test_matched_features_are_equal_where_the_image_is_linear():
    views = two_views(ramps(REGION), seeds_of(1) * 3, PATCH, GEOMETRY_ONLY)
    points = matching_points(views, PATCH, 100, seeds_of(1) * 3)

    first = sample_points(views.first, points.first, PATCH)
    second = sample_points(views.second, points.second, PATCH)

    edge = inside(points.region, [n - 4 for n in REGION], slack=-2) & points.valid
    assert edge.sum() > 30
    torch.testing.assert_close(first[edge], second[edge], atol=1e-3, rtol=0)


def test_points_do_not_depend_on_the_rest_of_the_batch():
    regions, seeds = torch.randn(5, 1, *REGION), seeds_of(5)

    together = matching_points(two_views(regions, seeds, PATCH, STRONG), PATCH, 32, seeds)

    for index in range(5):
        views = two_views(regions[index : index + 1], seeds[index : index + 1], PATCH, STRONG)
        apart = matching_points(views, PATCH, 32, seeds[index : index + 1])
        assert torch.equal(together.first[index], apart.first[0])
        torch.testing.assert_close(together.second[index], apart.second[0], atol=1e-5, rtol=0)


def test_points_are_marked_invalid_where_views_have_too_little_in_common():
    views = two_views(torch.zeros(2, 1, *REGION), seeds_of(2), PATCH, ViewConfig())
    views.second_to_region[1, :, 3] += 1000.0
    views.second_to_region[0, 0, 3] += 6.0

    points = matching_points(views, PATCH, 3000, seeds_of(2))

    assert points.first.shape == points.second.shape == points.region.shape == (2, 3000, 3)
    assert 0 < points.valid[0].sum() < 2048
    assert points.valid[0].long().diff().max() <= 0
    assert not points.valid[1].any()


def test_sampling_at_voxels_returns_their_features():
    features = torch.randn(2, 5, *PATCH)
    voxels = torch.stack([torch.randint(0, n, (2, 40)) for n in PATCH], dim=2)

    sampled = sample_points(features, voxels.float(), PATCH)

    expected = torch.stack([features[b, :, *voxels[b].T].T for b in range(2)])
    torch.testing.assert_close(sampled, expected, atol=1e-5, rtol=0)


def test_coarse_features_are_taken_as_cells_that_tile_the_patch():
    coarse = torch.nn.functional.avg_pool3d(ramps(PATCH).transpose(0, 1), (1, 2, 4))
    points = torch.tensor([[[2.0, 1.25, 5.5], [3.5, 7.0, 9.0], [0.0, 0.0, 0.0]]])

    sampled = sample_points(coarse, points, PATCH)

    expected = torch.tensor([[[2.0, 1.25, 5.5], [3.5, 7.0, 9.0], [0.0, 0.5, 1.5]]])
    torch.testing.assert_close(sampled, expected, atol=1e-5, rtol=0)


def test_gradients_reach_the_features():
    features = torch.zeros(1, 2, *PATCH, requires_grad=True)

    sample_points(features, torch.full((1, 1, 3), 3.0), PATCH).sum().backward()

    assert features.grad is not None
    torch.testing.assert_close(features.grad[0, :, 3, 3, 3], torch.ones(2))
    assert features.grad.sum() == 2
