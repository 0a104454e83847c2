"""Labels of a whole volume from a network that sees patches: sliding windows, weighted by a Gaussian."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from hssl_dist.records import Shape

_WINDOWS_PER_BATCH = 4


def predict(
    network: nn.Module,
    image: Float32[np.ndarray, "channel z y x"],
    patch_size: Shape,
    overlap: float,
    device: torch.device,
    background: Sequence[float] = (),
) -> UInt8[np.ndarray, "z y x"]:
    """The class of every voxel: argmax of the logits, averaged over the windows that see it.

    Windows overlap by `overlap` (0 <= overlap < 1) of their size; a voxel near a window's centre weighs more
    (Gaussian, standard deviation 1/8 of the size). A volume smaller than the patch is padded on both sides
    with each channel's `background` (0 if not given). The network is left in the mode it was in.
    """
    from monai.inferers.utils import sliding_window_inference

    padded, inner = _pad(image, patch_size, background or (0.0,) * image.shape[0])
    training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            logits = sliding_window_inference(
                padded[None].to(device), patch_size, _WINDOWS_PER_BATCH, network, overlap, mode="gaussian"
            )
    finally:
        network.train(training)
    assert isinstance(logits, Tensor)  # as the network's output, MONAI's other answers do not occur
    label: UInt8[np.ndarray, "z y x"] = logits[0].argmax(dim=0).to(torch.uint8).cpu().numpy()
    return label[inner]


def _pad(
    image: Float32[np.ndarray, "channel z y x"], patch_size: Shape, background: Sequence[float]
) -> tuple[Float32[Tensor, "channel z y x"], tuple[slice, slice, slice]]:
    """The image, at least as large as a patch, and where in it the original lies."""
    missing = [max(0, patch - size) for patch, size in zip(patch_size, image.shape[1:], strict=True)]
    before = [count // 2 for count in missing]
    z, y, x = (slice(start, start + size) for start, size in zip(before, image.shape[1:], strict=True))
    shape = [size + count for size, count in zip(image.shape[1:], missing, strict=True)]
    padded = torch.empty(image.shape[0], *shape)
    for channel, value in enumerate(background):
        padded[channel] = value
    padded[:, z, y, x] = torch.from_numpy(np.ascontiguousarray(image))
    return padded, (z, y, x)
