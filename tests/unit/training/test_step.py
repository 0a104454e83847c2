"""One step in one process: micro-batches change nothing, what is random is refused, collectives are few."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hssl_dist.config.pretrain import ObjectiveConfig, PretrainConfig, SamplingConfig
from hssl_dist.errors import TrainingError
from hssl_dist.networks.pretraining import PretrainingNetwork, Stage
from hssl_dist.sampling.loader import PretrainingLoader
from hssl_dist.sampling.schedule import Schedule
from hssl_dist.training.encoder_terms import ENCODER
from hssl_dist.training.loop import _new_network
from hssl_dist.training.objective import Samples
from hssl_dist.training.step import StepLoss, backward, finite_outputs
from tests.tiny_pretraining import ArrayReader, config, manifests

PLAIN: dict[str, Any] = {"projection_size": 8, "dense_points": 12, "dense_distance": 2.0}
ALL_OPTIONS = PLAIN | {
    "learn_temperature": True,
    "depths": (1, 0),
    "class_balance": True,
    "exclude_false_negatives": "patient",
    "dense_across_batch": True,
    "restored_voxels": "all",
}


def settings_of(objective: dict[str, Any], micro_batch: int | None = None) -> PretrainConfig:
    return config(
        objective=ObjectiveConfig.model_validate(objective),
        micro_batch=micro_batch,
        global_batch=7,
        sampling=SamplingConfig(patch_size=(4, 8, 8), block_size=2),
    )


def new_step(
    settings: PretrainConfig, stage: Stage, dtype: torch.dtype = torch.float64
) -> tuple[PretrainingNetwork, Samples]:
    schedule = Schedule(manifests(), settings.sampling, settings.seed, settings.global_batch)
    batch = next(PretrainingLoader(schedule, ArrayReader()).batches(0, 1))
    network = _new_network(settings, schedule).to(dtype)
    for name, parameter in network.named_parameters():
        if name.endswith("conv2.norm.weight"):  # they start at 0, and so would gradients of what is below
            nn.init.ones_(parameter)
    network.set_stage(stage)
    numbers = torch.tensor(batch.indices)
    samples = Samples(batch.regions, batch.tasks, batch.groups, numbers, batch.patients, batch.seeds)
    return network, samples


def step(
    stage: Stage, settings: PretrainConfig, dtype: torch.dtype = torch.float64
) -> tuple[StepLoss, dict[str, Tensor]]:
    network, samples = new_step(settings, stage, dtype)
    loss = backward(stage, samples, network, network, settings)
    gradients = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            gradients[name] = parameter.grad
    return loss, gradients


@pytest.mark.parametrize("objective", [PLAIN, ALL_OPTIONS], ids=["plain", "all options"])
@pytest.mark.parametrize("stage", ["encoder", "decoder"])
def test_micro_batches_give_the_gradient_of_all_at_once(stage: Stage, objective: dict[str, Any]) -> None:
    whole, expected = step(stage, settings_of(objective))
    size = max(float(gradient.abs().max()) for gradient in expected.values())
    for micro_batch in (1, 4, 6):
        loss, found = step(stage, settings_of(objective, micro_batch))
        assert loss.total.item() == pytest.approx(whole.total.item(), rel=1e-12)
        assert loss.terms.keys() == whole.terms.keys()
        for name, term in whole.terms.items():
            assert loss.terms[name].item() == pytest.approx(term.item(), rel=1e-12), name
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert (found[name] - gradient).abs().max() <= 1e-12 * size, name


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("stage", ["encoder", "decoder"])
def test_bfloat16_is_for_encoder_and_decoder_alone(stage: Stage, micro_batch: int | None) -> None:
    whole, expected = step(stage, settings_of(PLAIN), torch.float32)
    settings = settings_of(PLAIN, micro_batch).model_copy(update={"precision": "bfloat16"})
    loss, found = step(stage, settings, torch.float32)
    for name, term in whole.terms.items():
        assert loss.terms[name].dtype == torch.float32
        assert loss.terms[name].item() == pytest.approx(term.item(), rel=2e-2), name
    assert loss.total.item() != whole.total.item()
    assert all(x.dtype == torch.float32 for depths in loss.kept.values() for x in depths)
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    apart, size = (
        torch.stack([one.square().sum() for one in gradients]).sum().sqrt()
        for gradients in (
            [found[name] - gradient for name, gradient in expected.items()],
            list(expected.values()),
        )
    )
    assert apart < 0.1 * size


def test_options_change_what_is_learnt() -> None:
    """So that the tests of their exactness test something."""
    plain = {stage: step(stage, settings_of(PLAIN))[0].total.item() for stage in ("encoder", "decoder")}
    for stage, options in (
        ("encoder", {"class_balance": True}),
        ("encoder", {"exclude_false_negatives": "patient"}),
        ("encoder", {"exclude_false_negatives": "case"}),
        ("encoder", {"depths": (0, 1)}),
        ("decoder", {"dense_across_batch": True}),
        ("decoder", {"restored_voxels": "all"}),
        ("decoder", {"restoration_noise": 0.5}),
    ):
        changed, _ = step(stage, settings_of(PLAIN | options))
        assert abs(changed.total.item() / plain[stage] - 1) > 1e-3, options


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_what_is_kept_is_in_the_order_of_the_samples(micro_batch: int | None) -> None:
    settings = settings_of(ALL_OPTIONS, micro_batch)
    loss, _ = step("encoder", settings)
    network, samples = new_step(settings, "encoder")
    for number in range(len(samples.seeds)):
        one = Samples(
            *(getattr(samples, name)[number : number + 1] for name in ("regions", "tasks", "groups")),
            samples.numbers[number : number + 1],
            samples.relatives[number : number + 1],
            samples.seeds[number : number + 1],
        )
        output = network(ENCODER.prepare(one, settings).images.double(), "encoder")
        for name, expected in (("embedding", output.embeddings), ("pooled", output.pooled)):
            for kept, wanted in zip(loss.kept[name], expected, strict=True):
                torch.testing.assert_close(kept[:, number], wanted)


def test_a_network_that_draws_random_numbers_cannot_be_replayed() -> None:
    settings = settings_of(PLAIN, micro_batch=2)
    network, samples = new_step(settings, "encoder")
    network.projector[0].append(nn.Dropout(0.5))
    with pytest.raises(TrainingError, match="the network draws random numbers, so its forward pass cannot"):
        backward("encoder", samples, network, network, settings)


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("stage", ["encoder", "decoder"])
def test_samples_with_odd_outputs_are_found(stage: Stage, micro_batch: int | None) -> None:
    settings = settings_of(PLAIN, micro_batch)
    network, samples = new_step(settings, stage)
    assert finite_outputs(stage, samples, network, settings).all()
    samples.regions.factors[3] = torch.inf
    assert finite_outputs(stage, samples, network, settings).tolist() == [True] * 3 + [False] + [True] * 3
