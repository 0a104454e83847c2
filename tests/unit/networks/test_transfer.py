"""Transfer: every parameter of both sides is accounted for, and nothing half fits."""

import pytest
import torch

from hssl_dist.config.network import NetworkConfig
from hssl_dist.config.pretrain import ObjectiveConfig
from hssl_dist.errors import CheckpointError
from hssl_dist.networks.pretraining import build_pretraining_network, build_segmentation_network
from hssl_dist.networks.transfer import STEM_WEIGHT, transfer

NETWORK = NetworkConfig(
    widths=(2, 3),
    strides=((1, 1, 1), (2, 2, 2)),
    kernels=((3, 3, 3), (3, 3, 3)),
    encoder_blocks=(1, 1),
    decoder_blocks=(1,),
)


def pretrained() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return build_pretraining_network(NETWORK, ObjectiveConfig(), tasks=2, groups=2).state_dict()


@pytest.mark.parametrize("parts", [("encoder", "decoder"), ("encoder",)])
def test_every_parameter_is_accounted_for(parts: tuple[str, ...]) -> None:
    torch.manual_seed(2)
    model, source = build_segmentation_network(NETWORK, 1, 3), pretrained()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = transfer(model, source, parts)
    after = model.state_dict()
    assert set(report.loaded) | set(report.initialised) == set(after)
    assert set(report.loaded) | set(report.unused) == set(source)
    assert not set(report.loaded) & (set(report.initialised) | set(report.unused))
    assert {name.partition(".")[0] for name in report.loaded} == set(parts)
    assert all(torch.equal(after[name], source[name]) for name in report.loaded)
    assert all(torch.equal(after[name], before[name]) for name in report.initialised)
    assert report.initialised["heads.0.weight"] == "the source has no such parameter"
    assert report.unused["projector.0.0.weight"] == "the model has no such parameter"
    if "decoder" not in parts:
        assert report.initialised["decoder.stages.0.0.conv.weight"] == "its part was not asked for"
        assert report.unused["decoder.stages.0.0.conv.weight"] == "its part was not asked for"
    assert report.summary == (
        f"{len(report.loaded)} parameters loaded (0 inflated), {len(report.initialised)} new, "
        f"{len(report.unused)} of the source not used"
    )
    for fate in ("loaded", "initialised", "unused"):
        assert sum(part.get(fate, 0) for part in report.parts.values()) == len(getattr(report, fate))
    assert report.parts["encoder"] == {"loaded": sum(name.startswith("encoder.") for name in source)}
    assert report.parts["heads"] == {"initialised": 2}
    assert "loaded" not in report.parts["projector"]


def test_a_one_channel_stem_answers_equal_channels_alike() -> None:
    one, three = build_segmentation_network(NETWORK, 1, 3), build_segmentation_network(NETWORK, 3, 3)
    source = pretrained()
    assert transfer(one, source, ("encoder",)).inflated == ()
    assert transfer(three, source, ("encoder",)).inflated == (STEM_WEIGHT,)
    image = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = three.encoder(image.repeat(1, 3, 1, 1, 1)), one.encoder(image)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_parameter_that_does_not_fit_stops_the_transfer_untouched() -> None:
    wide = build_segmentation_network(NETWORK.model_copy(update={"widths": (2, 4)}), 1, 3)
    before = {name: tensor.clone() for name, tensor in wide.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"has shape .* in the source and .* in the model"):
        transfer(wide, pretrained(), ("encoder",))
    assert all(torch.equal(tensor, before[name]) for name, tensor in wide.state_dict().items())


def test_parameters_missing_on_either_side_stop_the_transfer() -> None:
    model, source = build_segmentation_network(NETWORK, 1, 3), pretrained()
    gone = source.pop("encoder.stem.conv.bias")
    with pytest.raises(CheckpointError, match=r"encoder\.stem\.conv\.bias is missing in the source"):
        transfer(model, source, ("encoder",))
    with pytest.raises(CheckpointError, match=r"encoder\.stages\.9\.bias is missing in the model"):
        transfer(
            model, source | {"encoder.stem.conv.bias": gone, "encoder.stages.9.bias": gone}, ("encoder",)
        )


def test_an_unknown_part_is_refused() -> None:
    model = build_segmentation_network(NETWORK, 1, 3)
    with pytest.raises(CheckpointError) as caught:
        transfer(model, pretrained(), ("encoder", "neck"))
    assert str(caught.value) == "the model has no part 'neck'; its parts are decoder, encoder, heads"


def test_weights_that_are_not_finite_stop_the_transfer_untouched() -> None:
    model, source = build_segmentation_network(NETWORK, 1, 3), pretrained()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    source["encoder.stem.conv.weight"][0, 0, 0, 0, 0] = torch.inf
    message = (
        r"encoder\.stem\.conv\.weight of the source is not finite everywhere; choose an earlier checkpoint"
    )
    with pytest.raises(CheckpointError, match=message):
        transfer(model, source, ("encoder", "decoder"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
