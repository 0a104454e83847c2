"""Labels of a whole volume from a network that sees patches: sliding windows, weighted by a Gaussian.

Windows are cut from the volume one batch at a time, lowest slices first. Slices that no window to come can
reach are finished and handed on, so sums are held for the slices of one row of windows, never for the volume.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Float32, Shaped, UInt8
from torch import Tensor, nn

from hssl_dist.errors import NonFiniteError
from hssl_dist.records import Scaling, Shape

_SIGMA = 1 / 8
"""Standard deviation of the weights, in sizes of the window."""

_LEAST_WEIGHT = 1e-3
"""So that a voxel only corners see has a finite mean."""

_BATCH_ON_GPU, _BATCH_ON_CPU = 4, 1
"""A CPU gains nothing from several windows at once, and their activations take its memory."""


@dataclass(frozen=True, slots=True)
class Windows:
    """How a volume is seen: windows of `patch_size` z y x that overlap by the share `overlap` (0 to below 1).

    Each is also seen mirrored along every combination of the axes in `flips` (0, 1, 2 for z, y, x), which
    takes 2^len(flips) times as long. `per_batch` windows are seen at once; 4 on a GPU, 1 on a CPU if None.
    """

    patch_size: Shape
    overlap: float = 0.5
    flips: tuple[int, ...] = ()
    per_batch: int | None = None


def predict(
    network: nn.Module,
    image: Shaped[np.ndarray, "channel z y x"],
    patch_size: Shape,
    overlap: float,
    device: torch.device,
    background: Sequence[float] = (),
) -> UInt8[np.ndarray, "z y x"]:
    """The class of every voxel: argmax of the logits of `logit_slabs`."""
    label = np.empty(image.shape[1:], dtype=np.uint8)
    z = 0
    for slab in logit_slabs(network, image, Windows(patch_size, overlap), device, background):
        label[z : z + slab.shape[1]] = torch.from_numpy(slab).argmax(dim=0)
        z += slab.shape[1]
    return label


def logit_slabs(
    network: nn.Module,
    image: Shaped[np.ndarray, "channel z y x"],
    windows: Windows,
    device: torch.device,
    background: Sequence[float] = (),
    scaling: Scaling = Scaling(),  # noqa: B008  (frozen)
) -> Iterator[Float32[np.ndarray, "class planes y x"]]:
    """The logits of every voxel, averaged over the windows that see it: slabs of slices, in order.

    A voxel near a window's centre weighs more (Gaussian, standard deviation 1/8 of the size; never below
    0.001). The image's intensities are `scaling.values(image)`. A volume smaller than a window lies in its
    middle, and each channel's `background` (0 if not given) around it. Until the last slab is out, the
    network is in evaluation mode; then it is in the mode it was in. Memory: one row of windows, times the
    classes. Raises NonFiniteError if a logit is NaN or infinite.
    """
    patch, size = windows.patch_size, cast("Shape", image.shape[1:])
    cut = _Cutter(image, scaling, patch, tuple(background) or (0.0,) * image.shape[0])
    per_batch = windows.per_batch or (_BATCH_ON_CPU if device.type == "cpu" else _BATCH_ON_GPU)
    see = _mirrored(network, windows.flips)
    sums = _Sums(torch.from_numpy(gaussian_weights(patch)).to(device), size)
    first, down, along = (window_starts(*axis, windows.overlap) for axis in zip(size, patch, strict=True))
    places = list(itertools.product(down, along))
    training = network.training
    network.eval()
    try:
        for z, following in itertools.pairwise((*first, first[-1] + patch[0])):
            with torch.inference_mode():  # not around the yield: it would hold for the caller, too
                for batch in (places[i : i + per_batch] for i in range(0, len(places), per_batch)):
                    sums.add(see(torch.from_numpy(cut(z, batch)).to(device)), batch)
                slab = sums.finish(z, following)
            yield slab
    finally:
        network.train(training)


def window_starts(size: int, patch: int, overlap: float) -> list[int]:
    """Where windows start along an axis: at equal steps, and the last one at the end.

    A short axis lies in its window's middle.
    """
    if size <= patch:
        return [-((patch - size) // 2)]
    step = max(1, int(patch * (1 - overlap)))
    return [*range(0, size - patch, step), size - patch]


def gaussian_weights(patch: Shape) -> Float32[np.ndarray, "z y x"]:
    """How much each voxel of a window counts, at most 1."""
    lines = []
    for side in patch:
        place = np.arange(side, dtype=np.float32) - np.float32((side - 1) / 2)
        lines.append(np.exp(-(place**2) / np.float32(2 * (_SIGMA * side) ** 2)))
    z, y, x = lines
    weights: Float32[np.ndarray, "z y x"] = z[:, None, None] * y[:, None] * x
    np.maximum(weights, np.float32(_LEAST_WEIGHT), out=weights)
    return weights


@dataclass(frozen=True, slots=True)
class _Cutter:
    """Cuts windows out of a volume; what lies beyond its border is background."""

    image: Shaped[np.ndarray, "channel z y x"]
    scaling: Scaling
    patch: Shape
    background: tuple[float, ...]

    def __call__(
        self, z: int, places: Sequence[tuple[int, int]]
    ) -> Float32[np.ndarray, "batch channel w v u"]:
        """The windows that start at slice `z` and these rows and columns."""
        batch = np.empty((len(places), len(self.image), *self.patch), dtype=np.float32)
        for window, (y, x) in zip(batch, places, strict=True):
            spans = [_span(*axis) for axis in zip((z, y, x), self.patch, self.image.shape[1:], strict=True)]
            source = tuple(outer for outer, _ in spans)
            target = tuple(inner for _, inner in spans)
            for channel, numbers, value in zip(window, self.image, self.background, strict=True):
                if channel[target].shape != channel.shape:
                    channel[...] = value
                channel[target] = self.scaling.values(numbers[source])
        return batch


class _Sums:
    """Weighted sums of logits, and of the weights, for the slices of one row of windows."""

    def __init__(self, weights: Float32[Tensor, "w v u"], size: Shape) -> None:
        self._weights, self._size = weights, size
        self._sums: Tensor | None = None

    def add(self, logits: Float32[Tensor, "batch class w v u"], places: Sequence[tuple[int, int]]) -> None:
        """Add windows that start at these rows and columns of the volume, and at the first slice held."""
        depth, height, width = self._weights.shape
        if self._sums is None:
            held = (logits.shape[1] + 1, depth, *self._size[1:])
            self._sums = torch.zeros(held, dtype=torch.float32, device=logits.device)
        for window, (y, x) in zip(logits, places, strict=True):
            rows, down = _span(y, height, self._size[1])
            columns, along = _span(x, width, self._size[2])
            weights = self._weights[:, down, along]
            self._sums[:-1, :, rows, columns] += window[:, :, down, along] * weights
            self._sums[-1, :, rows, columns] += weights

    def finish(self, first: int, following: int) -> Float32[np.ndarray, "class planes y x"]:
        """The means of the slices up to `following`, where `first` is the first held; they make room."""
        sums, done = self._sums, following - first
        assert sums is not None
        inside = slice(max(0, -first), min(done, self._size[0] - first))
        means: Float32[np.ndarray, "class planes y x"] = (sums[:-1, inside] / sums[-1, inside]).cpu().numpy()
        if not np.isfinite(means).all():
            raise NonFiniteError(
                f"the network's logits are NaN or infinite in slices {max(0, first)} to {following - 1}; "
                "the model is damaged, or the volume is nothing like those it was trained on"
            )
        depth = sums.shape[1]
        for start in range(0, depth - done, done):  # pieces that do not overlap what they replace
            stop = min(start + done, depth - done)
            sums[:, start:stop] = sums[:, start + done : stop + done]
        sums[:, max(0, depth - done) :] = 0.0
        return means


def _span(start: int, length: int, size: int) -> tuple[slice, slice]:
    """What of a window lies inside the volume: as a slice of the volume, and of the window."""
    low, high = max(0, start), min(size, start + length)
    return slice(low, high), slice(low - start, high - start)


def _mirrored(network: nn.Module, flips: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """The network, or the mean of its logits over all mirror images, each turned back."""
    mirrors = [
        [2 + axis for axis in chosen]
        for count in range(len(flips) + 1)
        for chosen in itertools.combinations(flips, count)
    ]

    def see(images: Float32[Tensor, "batch channel w v u"]) -> Float32[Tensor, "batch class w v u"]:
        total: Tensor = network(images)
        for axes in mirrors[1:]:
            total = total + network(images.flip(axes)).flip(axes)
        return total / len(mirrors) if len(mirrors) > 1 else total

    return see
