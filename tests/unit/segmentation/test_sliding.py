import itertools
from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor, nn

from hssl_dist.errors import NonFiniteError
from hssl_dist.networks.pretraining import build_segmentation_network
from hssl_dist.records import Scaling
from hssl_dist.segmentation import Windows, logit_slabs, predict
from tests.tiny_network import NETWORK

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


# ------------------------------------------------------------------------------------------- slabs of logits


class Asymmetric(nn.Module):
    """Logits of three classes from a convolution that knows left from right, and from the window's place."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, 3, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.conv(images)
        return x + torch.linspace(0, 1, images.shape[4])


def unet(channels: int = 2) -> nn.Module:
    torch.manual_seed(0)
    network = build_segmentation_network(NETWORK, channels, 3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network.eval()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


def all_logits(network: nn.Module, image: np.ndarray, windows: Windows, **more: Any) -> np.ndarray:
    return np.concatenate(list(logit_slabs(network, image, windows, CPU, **more)), axis=1)


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.75])
@pytest.mark.parametrize("shape", [(8, 8, 8), (21, 17, 8), (19, 9, 30), (8, 25, 11)])
def test_slabs_are_what_monai_makes_of_the_whole_volume(shape: tuple[int, int, int], overlap: float) -> None:
    image, patch, network = noise(2, *shape), (8, 8, 8), unet()
    with torch.inference_mode():
        whole = sliding_window_inference(
            torch.from_numpy(image)[None], patch, 4, network, overlap, mode="gaussian"
        )
    assert isinstance(whole, Tensor)
    expected = whole[0].numpy()
    for per_batch in (1, 3):
        logits = all_logits(network, image, Windows(patch, overlap, per_batch=per_batch))
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    labels = predict(network, image, patch, overlap, CPU)
    top = np.sort(expected, axis=0)
    clear = top[-1] - top[-2] > 1e-4
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(labels[clear], expected.argmax(axis=0)[clear])


@pytest.mark.parametrize("shape", [(5, 8, 8), (8, 3, 20), (1, 1, 1), (20, 2, 3)])
def test_a_small_volume_lies_in_the_middle_of_its_background(shape: tuple[int, int, int]) -> None:
    image, patch, network = noise(2, *shape), (8, 8, 8), unet()
    missing = [max(0, side - size) for side, size in zip(patch, shape, strict=True)]
    pads = [(count // 2, count - count // 2) for count in missing]
    padded = np.stack(
        [np.pad(c, pads, constant_values=v) for c, v in zip(image, (-1.0, 0.5), strict=True)]
    ).astype(np.float32)
    whole = all_logits(network, padded, Windows(patch))
    inner = tuple(slice(low, low + size) for (low, _), size in zip(pads, shape, strict=True))
    logits = all_logits(network, image, Windows(patch), background=(-1.0, 0.5))
    assert logits.shape == (3, *shape)
    np.testing.assert_allclose(logits, whole[:, *inner], rtol=1e-6, atol=1e-6)


def test_stored_numbers_are_seen_as_their_values() -> None:
    numbers = np.random.default_rng(0).integers(-3000, 3000, (1, 12, 9, 10)).astype(np.int16)
    scaling = Scaling(2.0**-10)
    expected = all_logits(unet(1), scaling.values(numbers), Windows((8, 8, 8)))
    np.testing.assert_array_equal(all_logits(unet(1), numbers, Windows((8, 8, 8)), scaling=scaling), expected)


@pytest.mark.parametrize("flips", [(0,), (2,), (1, 2), (0, 1, 2)])
def test_mirror_images_are_turned_back_and_averaged(flips: tuple[int, ...]) -> None:
    network, image = Asymmetric(), noise(1, 4, 5, 6)
    images = torch.from_numpy(image)[None]
    mirrored = []
    with torch.inference_mode():
        for chosen in itertools.product(*((False, True) for _ in flips)):
            axes = [2 + axis for axis, flip in zip(flips, chosen, strict=True) if flip]
            mirrored.append(network(images.flip(axes)).flip(axes))
    expected = torch.stack(mirrored).mean(dim=0)[0].numpy()
    logits = all_logits(network, image, Windows((4, 5, 6), flips=flips))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(logits, all_logits(network, image, Windows((4, 5, 6))))


def test_windows_are_cut_when_their_slices_are_wanted() -> None:
    seen: list[int] = []

    class Counting(Asymmetric):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(len(images))
            return super().forward(images)

    network = Counting().train()
    slabs = logit_slabs(network, noise(1, 20, 4, 10), Windows((4, 4, 4), 0.5, per_batch=3), CPU)
    assert seen == []
    assert next(slabs).shape == (3, 2, 4, 10)
    assert seen == [3, 1]
    assert torch.is_grad_enabled()
    assert not network.training
    slabs.close()  # type: ignore[attr-defined]
    assert network.training
    assert sum(seen) == 4


def test_logits_that_are_no_numbers_are_an_error() -> None:
    network = Asymmetric()
    with torch.no_grad():
        network.conv.bias[1] = np.nan  # type: ignore[index]
    with pytest.raises(NonFiniteError) as caught:
        predict(network, noise(1, 9, 4, 4), (4, 4, 4), 0.5, CPU)
    assert str(caught.value) == (
        "the network's logits are NaN or infinite in slices 0 to 1; the model is damaged, or the volume is "
        "nothing like those it was trained on"
    )
