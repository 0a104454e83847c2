"""The pretraining network: what each stage gives and trains."""

import math

import pytest
import torch

from hssl_dist.config.network import NetworkConfig
from hssl_dist.config.pretrain import ObjectiveConfig
from hssl_dist.networks.pretraining import PretrainingNetwork, Stage, build_pretraining_network, pool

NETWORK = NetworkConfig(
    widths=(4, 6),
    strides=((1, 1, 1), (2, 2, 2)),
    kernels=((3, 3, 3), (3, 3, 3)),
    encoder_blocks=(1, 1),
    decoder_blocks=(1,),
)
IMAGES = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def build(**objective: object) -> PretrainingNetwork:
    return build_pretraining_network(
        NETWORK, ObjectiveConfig.model_validate({"projection_size": 5, **objective}), tasks=3, groups=2
    )


def parts(network: PretrainingNetwork) -> set[str]:
    return {name.partition(".")[0] for name, p in network.named_parameters() if p.requires_grad}


def test_each_stage_answers_its_own_terms() -> None:
    network = build()
    encoder, decoder = network(IMAGES, "encoder"), network(IMAGES, "decoder")
    assert [x.shape for x in encoder.embeddings] == [(2, 5)]
    assert [x.shape for x in encoder.task_logits] == [(2, 3)]
    assert [x.shape for x in encoder.group_logits] == [(2, 2)]
    assert encoder.dense is encoder.restored is None
    assert decoder.embeddings == decoder.task_logits == decoder.group_logits == decoder.pooled == ()
    assert decoder.dense.shape == (2, 4, 4, 4, 4)
    assert decoder.restored.shape == IMAGES.shape


def test_a_term_without_weight_has_no_head() -> None:
    network = build(image_weight=0, group_weight=0, dense_weight=0)
    encoder, decoder = network(IMAGES, "encoder"), network(IMAGES, "decoder")
    assert encoder.embeddings == encoder.group_logits == ()
    assert decoder.dense is None
    assert len(encoder.task_logits) == 1
    assert decoder.restored is not None
    assert "projector" not in parts(network)


def test_each_depth_has_heads_of_its_own() -> None:
    network = build(depths=(1, 0))
    output = network(IMAGES, "encoder")
    features = network.encoder(IMAGES)
    for number, stage in enumerate((0, 1)):  # depth 1 is the finer one of two stages
        assert torch.equal(output.pooled[number], pool(features[stage]))
        assert torch.equal(output.embeddings[number], network.projector[number](output.pooled[number]))
        assert output.task_logits[number].shape == (2, 3)
        assert output.group_logits[number].shape == (2, 2)


@pytest.mark.parametrize(
    ("stage", "encoder_trainable", "expected"),
    [
        ("encoder", True, {"encoder", "projector", "task_head", "group_head", "log_temperature"}),
        ("decoder", True, {"encoder", "decoder", "dense_head", "restoration_head"}),
        ("decoder", False, {"decoder", "dense_head", "restoration_head"}),
    ],
)
def test_set_stage_chooses_what_is_trained(stage: Stage, encoder_trainable: bool, expected: set[str]) -> None:
    network = build(learn_temperature=True)
    network.set_stage(stage, encoder_trainable)
    assert parts(network) == expected


def test_temperature_is_fixed_unless_learnt() -> None:
    fixed, learnt = build(temperature=0.2), build(temperature=0.2, learn_temperature=True)
    assert math.isclose(fixed.temperature.item(), 0.2, rel_tol=1e-6)
    for network in (fixed, learnt):
        network.set_stage("encoder")
    assert not fixed.temperature.requires_grad
    assert learnt.temperature.requires_grad


def test_pool_keeps_mean_and_maximum() -> None:
    features = torch.arange(16.0).reshape(1, 2, 2, 2, 2)
    assert pool(features).tolist() == [[3.5, 11.5, 7.0, 15.0]]


def test_the_same_seed_gives_the_same_weights() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(build().state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
