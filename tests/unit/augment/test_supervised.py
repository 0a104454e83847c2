from functools import partial

import pytest
import torch

from hssl_dist.augment import augment_labelled, sample_seed
from hssl_dist.config.finetune import AugmentationConfig

SIZE = (8, 24, 24)
augment = partial(augment_labelled, config=AugmentationConfig(flip_axes=(True, True, True)))


def smooth(count, channels=1):
    noise = torch.randn(count, channels, *SIZE, generator=torch.Generator().manual_seed(5))
    field = torch.nn.functional.avg_pool3d(noise, (3, 7, 7), 1, (1, 3, 3), count_include_pad=False)
    return field / field.std((2, 3, 4), keepdim=True)


def seeds_of(count):
    return [sample_seed(1, 2, index) for index in range(count)]


def test_labels_keep_their_values_and_type():
    label = torch.zeros(20, *SIZE, dtype=torch.int64)
    label[:, 2:6, 6:18, 6:18] = 200
    label[:, 3:5, 8:16, 8:16] = 7

    for type_ in (torch.int64, torch.uint8):
        image, turned = augment(smooth(20), label.to(type_), seeds_of(20))
        assert turned.dtype == type_
        assert set(turned.unique().tolist()) == {0, 7, 200}
        assert image.shape == (20, 1, *SIZE)
        assert turned.shape == (20, *SIZE)


def test_image_and_label_are_turned_alike():
    image = smooth(60)
    label = (image[:, 0] > 0).long()

    changed, turned = augment(image, label, seeds_of(60))

    for before, now, was, is_ in zip(image[:, 0], changed[:, 0], label, turned, strict=True):
        inside, outside = now[is_ == 1], now[is_ == 0]
        contrast = (inside.mean() - outside.mean()) / now.std()
        reference = (before[was == 1].mean() - before[was == 0].mean()) / before.std()
        assert contrast > 0.75 * reference


def test_some_patches_are_only_flipped_and_some_are_turned():
    label = torch.arange(8 * 24 * 24).view(1, *SIZE).repeat(100, 1, 1, 1)

    _, turned = augment(smooth(100), label, seeds_of(100))

    permuted = [len(sample.unique()) == label[0].numel() for sample in turned]
    corners = {sample[0, 0, 0].item() for sample, whole in zip(turned, permuted, strict=True) if whole}
    assert 0.2 < sum(permuted) / 100 < 0.5
    assert corners == {sample.item() for sample in label[0][::7, ::23, ::23].flatten()}


def test_channels_share_the_geometry_but_not_the_change_of_intensity():
    image = smooth(40).repeat(1, 2, 1, 1, 1)

    changed, _ = augment(image, torch.zeros(40, *SIZE, dtype=torch.int64), seeds_of(40))

    different = 0
    for first, second in changed:
        correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
        assert correlation > 0.8
        different += not torch.allclose(first, second)
    assert different > 30


def test_a_sample_does_not_depend_on_the_rest_of_its_batch():
    image, seeds = smooth(5, channels=2), seeds_of(5)
    label = (image[:, 0] > 0).long()

    changed, turned = augment(image, label, seeds)

    for i in range(5):
        alone, alone_label = augment(image[i : i + 1], label[i : i + 1], seeds[i : i + 1])
        torch.testing.assert_close(changed[i], alone[0], atol=2e-6, rtol=0)
        assert torch.equal(turned[i], alone_label[0])


def test_without_probabilities_nothing_is_changed():
    off = AugmentationConfig(probability=0, flip=0, blur=0, low_resolution=0)
    image, label = smooth(6), torch.arange(6 * 8 * 24 * 24).view(6, *SIZE)

    changed, turned = augment_labelled(image, label, seeds_of(6), off)

    torch.testing.assert_close(changed, image, atol=2e-5, rtol=0)
    assert torch.equal(turned, label)


def test_flips_are_chosen_for_each_axis():
    only_x = AugmentationConfig(
        probability=0, flip=1, flip_axes=(False, False, True), blur=0, low_resolution=0
    )
    label = torch.arange(8 * 24 * 24).view(1, *SIZE)

    _, turned = augment_labelled(smooth(1), label, seeds_of(1), only_x)

    assert torch.equal(turned, label.flip(3))


@pytest.mark.parametrize(
    ("settings", "spread"), [({"brightness": 2.0, "contrast": 0, "gamma": 0, "noise": 0}, 1.0), ({}, 0.0)]
)
def test_ranges_are_those_of_the_config(settings, spread):
    config = AugmentationConfig(
        **({"probability": 1.0 if settings else 0.0, "flip": 0, "blur": 0, "low_resolution": 0} | settings),
        **({"rotation_rad": 0, "scale": 0} if settings else {}),
    )
    image = smooth(40)

    changed, _ = augment_labelled(image, torch.zeros(40, *SIZE, dtype=torch.uint8), seeds_of(40), config)

    shifts = (changed - image).mean((1, 2, 3, 4))
    assert shifts.abs().max() <= 2.0 * spread + 1e-5
    assert shifts.std() >= 0.9 * spread
