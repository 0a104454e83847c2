import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from hssl_dist.augment import intensity
from hssl_dist.augment.intensity import adjust_intensity
from hssl_dist.config.pretrain import ViewConfig

STILL = {"noise": 0, "blur": 0, "low_resolution": 0, "contrast": 0, "brightness": 0, "gamma": 0}
SEEDS = tuple(range(6))


@pytest.fixture
def images():
    return torch.randn(6, 12, 12, 12, generator=torch.Generator().manual_seed(1))


def adjusted(images, probability=1.0, seeds=SEEDS, **ranges):
    return adjust_intensity(images, seeds, "test", ViewConfig(**{**STILL, **ranges}), probability)


def test_without_ranges_nothing_changes(images):
    torch.testing.assert_close(adjusted(images), images, atol=2e-6, rtol=0)


def test_probability_zero_changes_nothing(images):
    changed = adjusted(images, 0.0, contrast=1, brightness=1, gamma=1, noise=1)

    torch.testing.assert_close(changed, images, atol=2e-6, rtol=0)


def test_the_input_is_left_alone(images):
    before = images.clone()

    adjusted(images, noise=1, blur=0.5, low_resolution=0.5, contrast=0.5, brightness=1, gamma=1)

    assert torch.equal(images, before)


def test_contrast_keeps_the_mean_and_scales_the_deviation(images):
    changed = adjusted(images, contrast=0.3)
    ratio = changed.std((1, 2, 3)) / images.std((1, 2, 3))

    torch.testing.assert_close(changed.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=1e-5, rtol=0)
    assert ((ratio > 0.7) & (ratio < 1.3)).all()
    assert len(ratio.unique()) == 6


def test_brightness_shifts_every_voxel_alike(images):
    shift = (adjusted(images, brightness=0.5) - images).flatten(1)

    assert (shift.amax(1) - shift.amin(1)).max() < 1e-5
    assert shift.abs().max() <= 0.5
    assert len(shift.mean(1).unique()) == 6


def test_gamma_bends_between_the_extremes(images):
    changed = adjusted(images, gamma=0.4)
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    before, after = (images - low) / (high - low), (changed - low) / (high - low)
    inner = (before > 0.05) & (before < 0.95)
    gamma = torch.where(inner, after.clamp(1e-6, 1).log() / before.clamp(1e-6, 1).log(), torch.nan)

    in_order = changed.flatten(1).gather(1, images.flatten(1).argsort(1))
    assert in_order.diff().min() > -1e-5
    for row in gamma:
        values = row[~row.isnan()]
        assert values.max() - values.min() < 1e-3
        assert np.exp(-0.4) - 1e-3 < values.mean() < np.exp(0.4) + 1e-3


def test_noise_is_added_with_a_deviation_of_its_own_per_sample(images):
    noise = (adjusted(images, noise=0.5) - images).flatten(1)

    assert noise.std(1).max() < 0.52
    assert noise.std(1).min() > 0.0
    assert len(noise.std(1).unique()) == 6
    assert noise.mean(1).abs().max() < 0.05


def test_a_constant_image_stays_constant():
    changed = adjusted(torch.full((6, 12, 12, 12), 3.0), blur=1, low_resolution=1, contrast=0.5, gamma=1)

    torch.testing.assert_close(changed, torch.full_like(changed, 3.0), atol=1e-5, rtol=0)


def test_blur_equals_scipys_away_from_the_borders():
    image = torch.randn(1, 24, 24, 24, generator=torch.Generator().manual_seed(2))
    operator = intensity._blurring(24, torch.full((1, 1, 1, 1), 1.1))

    blurred = image
    for axis in (1, 2, 3):
        blurred = intensity._along(axis, operator, blurred)

    expected = gaussian_filter(image[0].double().numpy(), 1.1, truncate=12)
    np.testing.assert_allclose(blurred[0, 8:-8, 8:-8, 8:-8], expected[8:-8, 8:-8, 8:-8], atol=1e-5)


def test_matrices_act_along_their_own_axis():
    image, operator = torch.randn(2, 3, 4, 5), {n: torch.randn(2, n, n) for n in (3, 4, 5)}

    for axis, letters in ((1, "bij,bjyx->biyx"), (2, "bij,bzjx->bzix"), (3, "bij,bzyj->bzyi")):
        matrix = operator[image.shape[axis]]
        torch.testing.assert_close(
            intensity._along(axis, matrix, image), torch.einsum(letters, matrix, image)
        )


def test_coarsening_by_two_averages_pairs_and_interpolates():
    line = np.array([1.0, 3.0, 5.0, 5.0, 0.0, 2.0])
    cells = [2.0, 5.0, 1.0]
    expected = [2.0, 2.75, 4.25, 4.0, 2.0, 1.0]

    operator = intensity._coarsening(6, torch.full((1, 1, 1, 1), 3.0))[0].numpy()

    np.testing.assert_allclose(np.interp((np.arange(6) + 0.5) / 2 - 0.5, range(3), cells), expected)
    np.testing.assert_allclose(operator @ line, expected, atol=1e-6)


@pytest.mark.parametrize("coarse", [1, 4, 7, 10])
def test_coarsening_equals_averaging_and_interpolating_by_hand(coarse):
    line = np.random.default_rng(0).normal(size=10)
    fine = np.repeat(line, coarse)  # 10 * coarse equal pieces: `coarse` cells of 10 pieces each
    cells = fine.reshape(coarse, 10).mean(1)
    expected = np.interp((np.arange(10) + 0.5) * coarse / 10 - 0.5, range(coarse), cells)

    operator = intensity._coarsening(10, torch.full((1, 1, 1, 1), float(coarse)))[0].numpy()

    np.testing.assert_allclose(operator @ line, expected, atol=1e-5)


def test_thick_slices_are_not_mixed():
    image = torch.zeros(8, 8, 48, 48)
    image[:, 4, 20:22, 20:22] = 1.0

    changed = adjusted(image, seeds=range(8), blur=1, low_resolution=1)

    assert changed[:, 4].amax() < 0.95
    assert changed[:, :4].abs().max() < 1e-2
    assert changed[:, 5:].abs().max() < 1e-2


def test_blur_lowers_detail_in_about_the_share_asked_for():
    images = torch.randn(200, 4, 6, 6, generator=torch.Generator().manual_seed(3))

    changed = adjusted(images, seeds=range(200), blur=0.25)

    touched = (changed - images).flatten(1).abs().amax(1) > 1e-4
    assert abs(touched.float().mean() - 0.25) < 0.08
    assert (changed.std((1, 2, 3)) < images.std((1, 2, 3)))[touched].all()
