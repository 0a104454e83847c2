"""The U-Net: nnU-Net's numerics, sizes, the smallest inputs, initialisation."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hssl_dist.config.network import NetworkConfig
from hssl_dist.errors import CheckpointError, ConfigError
from hssl_dist.networks import unet
from hssl_dist.networks.keymaps import nnunet_names, to_nnunet
from hssl_dist.networks.unet import ConvNorm, Convolution, InstanceNorm, ResidualBlock, ResidualUNet
from hssl_dist.records import Shape

SMALL = NetworkConfig(
    widths=(4, 6, 6),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
    kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
    encoder_blocks=(1, 3, 2),
    decoder_blocks=(2, 1),
)


def new_unet(config: NetworkConfig = SMALL, in_channels: int = 2, classes: int = 3) -> ResidualUNet:
    """With no parameter at a special value, so that every one of them matters."""
    torch.manual_seed(0)
    network = ResidualUNet(config, in_channels, classes)
    for parameter in network.parameters():
        nn.init.normal_(parameter, mean=0.2, std=0.3)
    return network


def new_nnunet(config: NetworkConfig, in_channels: int, classes: int, deep_supervision: bool) -> nn.Module:
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    return unet.ResidualEncoderUNet(
        input_channels=in_channels,
        n_stages=len(config.widths),
        features_per_stage=config.widths,
        conv_op=nn.Conv3d,
        kernel_sizes=config.kernels,
        strides=config.strides,
        n_blocks_per_stage=config.encoder_blocks,
        num_classes=classes,
        n_conv_per_stage_decoder=config.decoder_blocks[::-1],
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=deep_supervision,
    )


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


class Layouts(TorchDispatchMode):
    """The memory formats in which volumes reach torch's convolution; that of its output is torch's affair."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.memory_format] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.convolution.default:
            usual, last = torch.contiguous_format, torch.channels_last_3d
            self.seen.append(last if args[0].is_contiguous(memory_format=last) else usual)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("config", [SMALL, NetworkConfig()], ids=["small", "default"])
def test_equals_nnunet_with_the_same_weights(config: NetworkConfig) -> None:
    ours, theirs = new_unet(config), new_nnunet(config, 2, 3, deep_supervision=True)
    theirs.load_state_dict(to_nnunet(ours.state_dict()), strict=True)
    x = images(2, 2, 8, 32, 32)
    with torch.no_grad():
        found, expected = ours.train()(x), theirs(x)
        assert len(found) == len(config.widths) - 1
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.eval()(x), expected[0], rtol=1e-5, atol=1e-5)


def test_no_two_parameters_have_a_name_in_common_there() -> None:
    names = [alias for name in new_unet().state_dict() for alias in nnunet_names(name)]
    assert len(names) == len(set(names))


def test_nnunets_own_weights_load_here() -> None:
    theirs, ours = new_nnunet(SMALL, 2, 3, deep_supervision=False), new_unet()
    state = theirs.state_dict()
    renamed = {name: state[nnunet_names(name)[0]] for name in ours.state_dict()}
    ours.load_state_dict(renamed, strict=True)
    x = images(1, 2, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_key_map_refuses_what_it_does_not_know() -> None:
    with pytest.raises(CheckpointError, match=r"parameter 'projector\.0\.weight' is no part"):
        to_nnunet({"projector.0.weight": torch.zeros(1)})


def test_features_and_logits_have_the_documented_sizes() -> None:
    network, x = new_unet(), images(1, 2, 4, 8, 12)
    features = network.encoder(x)
    assert [tuple(f.shape) for f in features] == [(1, 4, 4, 8, 12), (1, 6, 4, 4, 6), (1, 6, 2, 2, 3)]
    assert [tuple(d.shape) for d in network.decoder(features)] == [(1, 6, 4, 4, 6), (1, 4, 4, 8, 12)]
    assert [tuple(y.shape) for y in network.train()(x)] == [(1, 3, 4, 8, 12), (1, 3, 4, 4, 6)]
    assert network.eval()(x).shape == (1, 3, 4, 8, 12)


def test_one_voxel_in_the_deepest_stage_is_not_lost() -> None:
    network = new_unet().eval()
    with torch.no_grad():
        deepest = network.encoder(images(2, 2, 2, 4, 4))[-1]
    assert deepest.shape == (2, 6, 1, 1, 1)
    assert torch.isfinite(deepest).all()
    assert (deepest[0] - deepest[1]).abs().max() > 1e-2
    norm = InstanceNorm(2)
    nn.init.constant_(norm.bias, 0.5)
    torch.testing.assert_close(
        norm(torch.tensor([1.0, -2.0]).reshape(1, 2, 1, 1, 1)).flatten(), torch.tensor([1.5, -1.5])
    )


@pytest.mark.parametrize(
    ("size", "kernel"),
    [((2, 6, 6), (3, 3, 3)), ((4, 6, 6), (5, 3, 3)), ((6, 1, 6), (1, 3, 3)), ((6, 6, 2), (3, 3, 3))],
)
def test_a_volume_smaller_than_the_kernel_is_convolved_in_full_precision(size: Shape, kernel: Shape) -> None:
    """Its gradients in bfloat16 are those of float32; where the kernel fits, they are bfloat16's."""

    def gradients(size: Shape, precision: torch.dtype) -> list[Tensor]:
        torch.manual_seed(0)
        layer = ConvNorm(4, 8, kernel, (1, 2, 2))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            out = layer(torch.randn(2, 4, *size))
        out.float().square().sum().backward()
        return [value.grad for value in layer.parameters() if value.grad is not None]

    def alike(size: Shape) -> bool:
        pairs = zip(gradients(size, torch.bfloat16), gradients(size, torch.float32), strict=True)
        return all(torch.equal(one, other) for one, other in pairs)

    assert alike(size)
    assert not alike(tuple(map(max, size, kernel)))


@pytest.mark.parametrize(("wide", "narrow"), [(8, 8), (16, 8), (8, 16), (12, 20), (2, 8), (16, 3)])
@pytest.mark.parametrize("kernel", [(1, 1, 1), (1, 3, 3), (3, 3, 3)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_few_channels_are_convolved_in_another_layout_to_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch,
    wide: int,
    narrow: int,
    kernel: Shape,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    """Output and all gradients against torch's own in double precision, with and without a stride."""
    monkeypatch.setattr(unet, "_BLOCK", 16)
    torch.manual_seed(0)
    for stride, size in (((1, 1, 1), (3, 9, 7)), ((2, 2, 2), (4, 8, 6))):
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        ours = Convolution(wide, narrow, kernel, stride, padding)
        theirs = nn.Conv3d(wide, narrow, kernel, stride, padding).double()
        theirs.load_state_dict(ours.state_dict())
        found, expected = (
            images(2, wide, *size).requires_grad_(),
            images(2, wide, *size).double().requires_grad_(),
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16), Layouts() as layouts:
            output = ours(found)
        assert output.dtype == dtype
        assert layouts.seen == [torch.channels_last_3d]
        reference = theirs(expected)
        weights = torch.randn_like(reference)
        (output * weights.to(dtype)).sum().backward()
        (reference * weights).sum().backward()
        pairs = [(output, reference), (found.grad, expected.grad)]
        pairs += [(a.grad, b.grad) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)]
        for got, wanted in pairs:
            assert (got.double() - wanted).norm() < tolerance * wanted.norm()


@pytest.mark.parametrize(("kernel", "learning"), [((1, 3, 3), False), ((3, 3, 3), True)])
def test_kernels_of_several_slices_learn_in_another_layout(kernel: Shape, learning: bool) -> None:
    layer, x = Convolution(16, 32, kernel, padding="same"), images(2, 16, 3, 5, 4)
    with Layouts() as layouts:
        layer(x)
        with torch.no_grad():
            layer(x)
    last, first = torch.channels_last_3d, torch.contiguous_format
    assert layouts.seen == [last if learning else first, first]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [(1, 4), (4, 8), (16, 16)])
def test_a_small_volume_that_comes_alone_takes_the_fast_way_to_the_same_numbers(
    channels: tuple[int, int], stride: int
) -> None:
    """Output and all gradients against torch's own, without a call of torch's slow code, which that takes."""
    torch.manual_seed(0)
    ours = Convolution(*channels, (3, 3, 3), stride, (1, 1, 1))
    theirs = nn.Conv3d(*channels, (3, 3, 3), stride, (1, 1, 1))
    theirs.load_state_dict(ours.state_dict())
    results: list[list[Tensor]] = []
    slow: list[bool] = []
    for layer in ours, theirs:
        x = images(1, channels[0], 4, 6, 10).requires_grad_()
        with torch.profiler.profile() as profile:
            with torch.no_grad():
                silent = layer(x)
            output = layer(x)
            output.square().sum().backward()
        slow.append(any("slow_conv" in event.key for event in profile.key_averages()))
        results.append([silent, output, *(value.grad for value in (x, *layer.parameters()))])
    assert slow == [False, True]
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_each_sample_is_treated_alone() -> None:
    network, x = new_unet().eval(), images(3, 2, 2, 8, 8)
    with torch.no_grad():
        whole, alone = network(x), network(x[1:2])
    torch.testing.assert_close(whole[1:2], alone, rtol=1e-5, atol=1e-6)


def test_a_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        new_unet()(images(1, 2, 3, 8, 8))
    assert str(caught.value) == (
        "the network got images of (3, 8, 8) voxels; it reduces by (2, 4, 4): "
        "choose a patch size that is a multiple of it on each axis"
    )


def test_new_residual_blocks_are_shortcuts() -> None:
    network = ResidualUNet(SMALL, 1, 2)
    last = network.encoder.stages[1][2]
    assert isinstance(last, ResidualBlock)
    x = images(1, 6, 2, 4, 4).abs()
    torch.testing.assert_close(last(x), x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strides": ((1, 2, 2), (1, 2, 2), (2, 2, 2))}, "strides start with (1, 2, 2)"),
        ({"kernels": ((1, 3, 3), (2, 3, 3), (3, 3, 3))}, "kernel (2, 3, 3) has an even size"),
        (
            {
                "widths": (4,),
                "strides": ((1, 1, 1),),
                "kernels": ((1, 3, 3),),
                "encoder_blocks": (1,),
                "decoder_blocks": (),
            },
            "a U-Net needs at least 2",
        ),
    ],
)
def test_networks_that_cannot_be_built_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        NetworkConfig.model_validate(SMALL.model_dump() | change)
