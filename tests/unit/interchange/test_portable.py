"""The U-Net that leaves: every parameter of the model is exported or left out with a reason."""

import re

import pytest
import torch

from hssl_dist.errors import CheckpointError, ConfigError
from hssl_dist.interchange.portable import portable
from tests.models import NETWORKS, pretrained_model, segmentation_model


def test_a_pretrained_model_leaves_its_heads_behind() -> None:
    card, state = pretrained_model()
    unet = portable(card, state)
    assert not unet.has_heads
    assert set(unet.state) | set(unet.left_out) == set(state)
    assert not set(unet.state) & set(unet.left_out)
    assert {name.partition(".")[0] for name in unet.state} == {"encoder", "decoder"}
    assert {name.partition(".")[0] for name in unet.left_out} == {
        "projector",
        "task_head",
        "group_head",
        "dense_head",
        "restoration_head",
        "log_temperature",
    }
    assert unet.left_out["task_head.0.weight"].startswith("classifier of the pretraining tasks")
    assert all(torch.equal(unet.state[name], state[name]) for name in unet.state)


def test_a_segmentation_model_leaves_nothing() -> None:
    card, state = segmentation_model(in_channels=2)
    unet = portable(card, state)
    assert unet.has_heads
    assert (unet.in_channels, unet.classes, unet.left_out) == (2, 4, {})
    assert set(unet.state) == set(state)


def test_one_channel_is_spread_over_several() -> None:
    card, state = pretrained_model()
    one, three = portable(card, state), portable(card, state, channels=3)
    image = torch.randn(1, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = three.network.encoder(image.repeat(1, 3, 1, 1, 1))
        expected = one.network.encoder(image)
    assert three.in_channels == 3
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("in_channels", [1, 2])
def test_other_channels_are_refused(in_channels: int) -> None:
    make = segmentation_model if in_channels == 1 else pretrained_model
    card, state = make(in_channels=in_channels)
    with pytest.raises(ConfigError) as caught:
        portable(card, state, channels=3)
    assert str(caught.value) == (
        f"the model takes {in_channels} input channels and cannot be exported for 3; "
        "only a pretrained model for one channel can be spread over several"
    )


def test_a_part_nobody_knows_is_not_left_out_in_silence() -> None:
    card, state = pretrained_model()
    with pytest.raises(
        CheckpointError, match=re.escape("parameter 'adapter.weight' is no part of a pretrained")
    ):
        portable(card, state | {"adapter.weight": torch.zeros(1)})
    card, state = segmentation_model()
    with pytest.raises(
        CheckpointError, match=re.escape("parameter 'projector.bias' is no part of a segmentation")
    ):
        portable(card, state | {"projector.bias": torch.zeros(1)})


def test_weights_of_another_network_are_refused() -> None:
    card, _ = pretrained_model()
    _, state = pretrained_model(NETWORKS["isotropic"])
    with pytest.raises(CheckpointError, match="load weights of the same network config"):
        portable(card, state)
