"""The U-Net: nnU-Net's numerics, sizes, the smallest inputs, initialisation."""

import re

import pytest
import torch
from torch import Tensor, nn

from hssl_dist.config.network import NetworkConfig
from hssl_dist.errors import CheckpointError, ConfigError
from hssl_dist.networks.keymaps import from_nnunet, to_nnunet
from hssl_dist.networks.unet import ConvNorm, InstanceNorm, ResidualBlock, ResidualUNet

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


def test_key_map_goes_there_and_back() -> None:
    state = new_unet().state_dict()
    back = from_nnunet(to_nnunet(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_nnunets_own_weights_load_here() -> None:
    theirs, ours = new_nnunet(SMALL, 2, 3, deep_supervision=False), new_unet()
    ours.load_state_dict(from_nnunet(theirs.state_dict()), strict=True)
    x = images(1, 2, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_key_map_refuses_what_it_does_not_know() -> None:
    with pytest.raises(CheckpointError, match=r"parameter 'projector\.0\.weight' is no part"):
        to_nnunet({"projector.0.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=re.escape("parameter 'encoder.x' (one of 1) is no part")):
        from_nnunet({"encoder.x": torch.zeros(1)})
    state = dict(to_nnunet(new_unet().state_dict()))
    state["encoder.stem.convs.0.all_modules.0.bias"] = torch.zeros(4)
    with pytest.raises(CheckpointError, match="must be equal and differ"):
        from_nnunet(state)


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


@pytest.mark.parametrize(("depth", "kernel"), [(2, 3), (4, 5)])
def test_a_volume_thinner_than_the_kernel_is_convolved_in_full_precision(depth: int, kernel: int) -> None:
    """Its gradients in bfloat16 are those of float32; one slice more, and they are bfloat16's."""

    def gradients(slices: int, precision: torch.dtype) -> list[Tensor]:
        torch.manual_seed(0)
        layer = ConvNorm(4, 8, (kernel, 3, 3))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            out = layer(torch.randn(2, 4, slices, 6, 6))
        out.float().square().sum().backward()
        return [value.grad for value in layer.parameters() if value.grad is not None]

    def alike(slices: int) -> bool:
        pairs = zip(gradients(slices, torch.bfloat16), gradients(slices, torch.float32), strict=True)
        return all(torch.equal(one, other) for one, other in pairs)

    assert alike(depth)
    assert not alike(kernel)


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
