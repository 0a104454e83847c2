import torch

from hssl_dist.augment import augment_labelled, sample_seed

SIZE = (8, 24, 24)


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
        image, turned = augment_labelled(smooth(20), label.to(type_), seeds_of(20))
        assert turned.dtype == type_
        assert set(turned.unique().tolist()) == {0, 7, 200}
        assert image.shape == (20, 1, *SIZE)
        assert turned.shape == (20, *SIZE)


def test_image_and_label_are_turned_alike():
    image = smooth(60)
    label = (image[:, 0] > 0).long()

    changed, turned = augment_labelled(image, label, seeds_of(60))

    for before, now, was, is_ in zip(image[:, 0], changed[:, 0], label, turned, strict=True):
        inside, outside = now[is_ == 1], now[is_ == 0]
        contrast = (inside.mean() - outside.mean()) / now.std()
        reference = (before[was == 1].mean() - before[was == 0].mean()) / before.std()
        assert contrast > 0.75 * reference


def test_some_patches_are_only_flipped_and_some_are_turned():
    label = torch.arange(8 * 24 * 24).view(1, *SIZE).repeat(100, 1, 1, 1)

    _, turned = augment_labelled(smooth(100), label, seeds_of(100))

    permuted = [len(sample.unique()) == label[0].numel() for sample in turned]
    corners = {sample[0, 0, 0].item() for sample, whole in zip(turned, permuted, strict=True) if whole}
    assert 0.2 < sum(permuted) / 100 < 0.5
    assert corners == {sample.item() for sample in label[0][::7, ::23, ::23].flatten()}


def test_channels_share_the_geometry_but_not_the_change_of_intensity():
    image = smooth(40).repeat(1, 2, 1, 1, 1)

    changed, _ = augment_labelled(image, torch.zeros(40, *SIZE, dtype=torch.int64), seeds_of(40))

    different = 0
    for first, second in changed:
        correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
        assert correlation > 0.8
        different += not torch.allclose(first, second)
    assert different > 30


def test_a_sample_does_not_depend_on_the_rest_of_its_batch():
    image, seeds = smooth(5, channels=2), seeds_of(5)
    label = (image[:, 0] > 0).long()

    changed, turned = augment_labelled(image, label, seeds)

    for i in range(5):
        alone, alone_label = augment_labelled(image[i : i + 1], label[i : i + 1], seeds[i : i + 1])
        torch.testing.assert_close(changed[i], alone[0], atol=2e-6, rtol=0)
        assert torch.equal(turned[i], alone_label[0])
