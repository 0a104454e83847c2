"""The residual encoder-decoder U-Net: blocks, encoder, decoder, segmentation network.

Same structure and numerics as nnU-Net's `ResidualEncoderUNet` (dynamic_network_architectures): a stem, stages
of residual blocks that downsample by their first convolution and shortcut by average pooling and a 1x1x1
convolution, transposed convolutions back up, affine instance norm, leaky ReLU. `keymaps` translates the
parameter names. Norms are per sample, so results depend neither on the batch nor on the number of ranks.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hssl_dist.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hssl_dist.config.network import NetworkConfig
    from hssl_dist.records import Shape

NEGATIVE_SLOPE = 0.01
NORM_EPSILON = 1e-5
_BLOCK = 8 if torch.backends.cpu.get_cpu_capability() == "AVX2" else 16
"""Channels that oneDNN's kernels take at once."""
_SMALL = 20480
"""The most numbers of a sample, its last axis left out, that torch's rule (`use_mkldnn`) calls small."""


class InstanceNorm(nn.Module):
    """Affine normalisation of each channel of each sample over its voxels, then leaky ReLU if `active`.

    A single voxel has no statistics: there only the affine part applies, so that its value is not lost.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "b c z y x"], active: bool = False) -> Float[Tensor, "b c z y x"]:
        if x.shape[2:].numel() == 1:
            affine = x * self.weight[:, None, None, None] + self.bias[:, None, None, None]
            return _leaky(affine) if active else affine
        # What F.instance_norm does, but the activation is in place before the result is a view: in place on a
        # view, autograd copies the whole gradient twice.
        samples = x.shape[0]
        channels = x.contiguous().view(1, -1, *x.shape[2:])
        weight, bias = self.weight.repeat(samples), self.bias.repeat(samples)
        normed = F.batch_norm(channels, None, None, weight, bias, training=True, eps=NORM_EPSILON)
        return (_leaky(normed) if active else normed).view(x.shape)


class Convolution(nn.Conv3d):
    """Goes around what torch and oneDNN on CPUs are slow at or get wrong.

    Few channels, and the weight gradients of kernels of several slices, are up to twice as fast where
    channels lie last. A small volume that comes alone is kept from code of torch's that takes several times
    as long as oneDNN. In bfloat16 the weight gradient reads, and sometimes writes, beyond volumes that are
    smaller than the kernel; those are convolved in the weights' own precision. (docs/decisions.md has all
    three.)
    """

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b d w v u"]:
        if x.device.type != "cpu":
            return super().forward(x)
        if any(length < reach for length, reach in zip(x.shape[2:], self.kernel_size, strict=True)):
            with torch.autocast("cpu", enabled=False):
                return self._convolve(x.to(self.weight.dtype))
        few = bool(self.in_channels % _BLOCK or self.out_channels % _BLOCK)
        learns = self.kernel_size[0] > 1 and torch.is_grad_enabled()
        if self.in_channels > 1 and (few or learns):
            x = x.contiguous(memory_format=torch.channels_last_3d)
        return self._convolve(x)

    def _convolve(self, x: Tensor) -> Tensor:
        if not self._is_small_and_alone(x):
            return super().forward(x)
        if torch.is_grad_enabled():  # in company, since the backward pass is as slow
            return super().forward(torch.cat((x, torch.zeros_like(x))))[:1]
        sizes = self.padding, self.stride, self.dilation, self.groups
        convolved: Tensor = torch.ops.aten.mkldnn_convolution(x, self.weight, self.bias, *sizes)
        return convolved

    def _is_small_and_alone(self, x: Tensor) -> bool:
        """Whether torch would not give `x` to oneDNN, by its size, though that is faster."""
        return (
            len(x) == 1
            and x[..., 0].numel() <= _SMALL
            and max(self.kernel_size) > 1
            and x.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        )


class ConvNorm(nn.Module):
    """Convolution that keeps the size up to its stride, then instance norm, then leaky ReLU if `active`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Shape,
        stride: Shape = (1, 1, 1),
        *,
        active: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv = Convolution(in_channels, out_channels, kernel, stride, padding, bias=bias)
        self.norm = InstanceNorm(out_channels)
        self.active = active

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b d w v u"]:
        normed: Tensor = self.norm(self.conv(x), self.active)
        return normed


class ResidualBlock(nn.Module):
    """Two convolutions around a shortcut that pools where they stride and projects where widths differ."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Shape, stride: Shape) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels, kernel, stride)
        self.conv2 = ConvNorm(out_channels, out_channels, kernel, active=False)
        shortcut: list[nn.Module] = []
        if stride != (1, 1, 1):
            shortcut.append(nn.AvgPool3d(stride, stride))
        if in_channels != out_channels:
            shortcut.append(ConvNorm(in_channels, out_channels, (1, 1, 1), active=False, bias=False))
        self.skip = nn.Sequential(*shortcut)

    def forward(self, x: Float[Tensor, "b c z y x"]) -> Float[Tensor, "b d w v u"]:
        return _leaky(self.conv2(self.conv1(x)) + self.skip(x))


class ResidualEncoder(nn.Module):
    """Images to features of every stage, finest first; stage `i` has `config.widths[i]` channels.

    So many of the finest as `recomputed_stages` says keep nothing for the backward pass but what goes in; the
    rest is computed again in it. Raises ConfigError if an image's size is not a multiple of the network's
    reduction.
    """

    recomputed_stages = 0

    def __init__(self, config: NetworkConfig, in_channels: int) -> None:
        super().__init__()
        self.reduction = config.reduction
        self.stem = ConvNorm(in_channels, config.widths[0], config.kernels[0])
        self.stages = nn.ModuleList()
        before = config.widths[0]
        for width, kernel, stride, blocks in zip(
            config.widths, config.kernels, config.strides, config.encoder_blocks, strict=True
        ):
            self.stages.append(
                nn.Sequential(
                    ResidualBlock(before, width, kernel, stride),
                    *(ResidualBlock(width, width, kernel, (1, 1, 1)) for _ in range(blocks - 1)),
                )
            )
            before = width
        _initialise(self)

    def forward(self, images: Float[Tensor, "b c z y x"]) -> list[Tensor]:
        size = tuple(images.shape[2:])
        if any(length % factor for length, factor in zip(size, self.reduction, strict=True)):
            raise ConfigError(
                f"the network got images of {size} voxels; it reduces by {self.reduction}: "
                "choose a patch size that is a multiple of it on each axis"
            )
        features = []
        x = _run(self.stem, images, recompute=self.recomputed_stages > 0)
        for number, stage in enumerate(self.stages):
            x = _run(stage, x, recompute=number < self.recomputed_stages)
            features.append(x)
        return features


class UNetDecoder(nn.Module):
    """Encoder features (finest first) to decoder features in order of computation: coarsest first.

    The last has `config.widths[0]` channels at the size of the image. `recomputed_stages` is as it is for the
    encoder.
    """

    recomputed_stages = 0

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.upsampling = nn.ModuleList()
        self.stages = nn.ModuleList()
        for level in reversed(range(len(config.widths) - 1)):
            width, below = config.widths[level], config.widths[level + 1]
            kernel, stride = config.kernels[level], config.strides[level + 1]
            self.upsampling.append(nn.ConvTranspose3d(below, width, stride, stride))
            self.stages.append(
                nn.Sequential(
                    ConvNorm(2 * width, width, kernel),
                    *(ConvNorm(width, width, kernel) for _ in range(config.decoder_blocks[level] - 1)),
                )
            )
        _initialise(self)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        x = features[-1]
        decoded = []
        levels = zip(self.upsampling, self.stages, reversed(features[:-1]), strict=True)
        for number, (upsample, stage, skip) in enumerate(levels):
            finest = len(self.stages) - 1 - number < self.recomputed_stages
            x = _run(partial(_joined, upsample, stage), x, skip, recompute=finest)
            decoded.append(x)
        return decoded


def _joined(upsample: nn.Module, stage: nn.Module, below: Tensor, skip: Tensor) -> Tensor:
    decoded: Tensor = stage(torch.cat((upsample(below), skip), dim=1))
    return decoded


def _run(part: Callable[..., Tensor], *inputs: Tensor, recompute: bool) -> Tensor:
    """The part's output; with `recompute`, what is inside is forgotten until the backward pass needs it."""
    if not recompute or not torch.is_grad_enabled():
        return part(*inputs)
    # Nothing in these networks draws random numbers, so no random state has to be kept.
    again: Tensor = checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False)
    return again


class ResidualUNet(nn.Module):
    """Encoder, decoder and one 1x1x1 segmentation head per decoder stage (coarsest first, like the stages).

    `classes` counts the background. Gives logits `b classes z y x`; in training with `deep_supervision`, a
    list of them, finest first. All heads exist either way, so weights always fit; those without a loss
    require no gradient.
    """

    def __init__(
        self, config: NetworkConfig, in_channels: int, classes: int, deep_supervision: bool = True
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.encoder = ResidualEncoder(config, in_channels)
        self.decoder = UNetDecoder(config)
        self.heads = nn.ModuleList(
            Convolution(width, classes, kernel_size=1) for width in reversed(config.widths[:-1])
        )
        _initialise(self.heads)
        if not deep_supervision:
            self.heads[:-1].requires_grad_(requires_grad=False)

    def forward(self, images: Float[Tensor, "b c z y x"]) -> Tensor | list[Tensor]:
        decoded = self.decoder(self.encoder(images))
        if self.deep_supervision and self.training:
            pairs = zip(self.heads, decoded, strict=True)
            return [head(features) for head, features in pairs][::-1]
        logits: Tensor = self.heads[-1](decoded[-1])
        return logits


def _leaky(x: Tensor) -> Tensor:
    """In place: `x` is nobody else's."""
    return F.leaky_relu(x, NEGATIVE_SLOPE, inplace=True)


def _initialise(part: nn.Module) -> None:
    """He's initialisation for leaky ReLU; residual branches start at zero, so blocks start as shortcuts."""
    for module in part.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, ResidualBlock):
            nn.init.zeros_(module.conv2.norm.weight)
