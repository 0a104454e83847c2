import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hssl_dist.segmentation import predict

CPU = torch.device("cpu")


class Threshold(nn.Module):
    """Two classes by voxel: channel 0 above channel 1 or not. Knows nothing of its window."""

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return torch.stack((images[:, 1], images[:, 0]), dim=1)


class Ramp(nn.Module):
    """Logits that depend on the voxel's place in its window, so that the weights matter."""

    def forward(self, images: Tensor) -> Tensor:
        place = torch.linspace(-1.0, 1.0, images.shape[4]).expand_as(images[:, 0])
        return torch.stack((images[:, 0], 2.0 * place * images[:, 0].abs()), dim=1)


@pytest.mark.parametrize("shape", [(4, 4, 4), (9, 4, 11), (2, 3, 8), (1, 1, 1)])
def test_voxelwise_network_gives_the_same_by_windows_as_at_once(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(1).standard_normal((2, *shape), dtype=np.float32)
    network = Threshold().train()
    label = predict(network, image, (4, 4, 4), 0.5, CPU)
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, image[0] > image[1])
    assert network.training


def test_overlapping_windows_are_weighted_by_a_gaussian() -> None:
    image = np.random.default_rng(2).standard_normal((1, 2, 2, 13), dtype=np.float32)
    size, step = 6, 3
    total, weight = np.zeros((2, *image.shape[1:])), np.zeros(image.shape[1:])
    place = np.arange(size) - (size - 1) / 2
    gaussian = np.exp(-(place**2) / (2 * (size / 8) ** 2))
    gaussian = np.maximum(gaussian, 1e-3)
    for start in (*range(0, 13 - size, step), 13 - size):
        window = (slice(None), slice(None), slice(start, start + size))
        with torch.inference_mode():
            logits = Ramp()(torch.from_numpy(image[(slice(None), *window)])[None])[0].numpy()
        total[(slice(None), *window)] += gaussian * logits
        weight[window] += gaussian
    expected = (total / weight).argmax(axis=0)
    assert 0.2 < expected.mean() < 0.8
    np.testing.assert_array_equal(predict(Ramp(), image, (2, 2, size), 0.5, CPU), expected)


def test_padding_takes_each_channels_background() -> None:
    seen: list[Tensor] = []

    class Spy(Threshold):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images[0])
            return super().forward(images)

    image = np.zeros((2, 1, 2, 3), np.float32)
    label = predict(Spy(), image, (3, 2, 4), 0.0, CPU, background=(-1.5, 2.5))
    assert label.shape == (1, 2, 3)
    (window,) = seen
    assert window.shape == (2, 3, 2, 4)
    assert window[0].unique().tolist() == [-1.5, 0.0]
    assert window[1].unique().tolist() == [0.0, 2.5]
    assert int((window[0] == 0.0).sum()) == 6
