"""The float16 loss scale: when it falls and grows, that a skipped step changes nothing, and exact resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hssl_dist.config.pretrain import ObjectiveConfig, PretrainConfig, StageConfig
from hssl_dist.errors import Interrupted, NonFiniteError
from hssl_dist.networks.pretraining import build_pretraining_network
from hssl_dist.training.checkpoint import CheckpointStore
from hssl_dist.training.loop import PretrainingResult, run_pretraining
from hssl_dist.training.loss_scale import LossScale
from hssl_dist.training.step import backward
from tests.tiny_pretraining import ArrayReader, Recorder, config, manifests
from tests.unit.training.test_step import PLAIN, new_step, settings_of

CPU = torch.device("cpu")


def test_it_halves_at_an_overflow_and_doubles_after_2000_steps_without_one() -> None:
    scale = LossScale()
    assert (scale.value, scale.can_fall) == (65536.0, True)
    for _ in range(1999):
        scale = scale.after_step()
    assert scale == LossScale(65536.0, 1999)
    assert scale.after_overflow() == LossScale(32768.0, 0)
    assert scale.after_step() == LossScale(131072.0, 0)


def test_it_stays_between_1_and_2_to_the_24() -> None:
    least, most = LossScale(1.0), LossScale(2.0**24, 1999)
    assert not least.can_fall
    assert least.after_overflow() == least
    assert most.after_step() == LossScale(2.0**24, 0)


def test_its_state_is_all_of_it_and_a_run_of_another_precision_has_none() -> None:
    scale = LossScale(4.0, 17)
    assert LossScale.of_state(scale.to_state()) == scale
    assert LossScale.of_state(None) == LossScale()


@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("stage", ["encoder", "decoder"])
def test_a_scaled_gradient_is_the_gradient_times_the_scale(stage: Any, micro_batch: int | None) -> None:
    """Of coupled and separate terms, and of the temperature."""

    def gradients(scale: float) -> dict[str, torch.Tensor]:
        settings = settings_of(PLAIN | {"learn_temperature": True}, micro_batch)
        network, samples = new_step(settings, stage)
        backward(stage, samples, network, network, settings, scale)
        return {name: value.grad for name, value in network.named_parameters() if value.grad is not None}

    plain, scaled = gradients(1.0), gradients(1024.0)
    assert plain.keys() == scaled.keys()
    assert stage == "decoder" or "log_temperature" in plain
    for name, gradient in plain.items():
        torch.testing.assert_close(scaled[name], 1024.0 * gradient, rtol=1e-12, atol=1e-12)


def float16_run(weight: float, **changes: Any) -> PretrainConfig:
    """A run whose losses are finite; scaled gradients are as much larger as its terms weigh."""
    weights = {f"{name}_weight": weight for name in ("image", "task", "group", "dense", "restoration")}
    objective = ObjectiveConfig(projection_size=8, dense_points=12, dense_distance=2.0, **weights)
    return config(objective=objective, precision="float16", checkpoint={"every_steps": 1}, **changes)


def run(folder: Path, settings: PretrainConfig, recorder: Recorder | None = None) -> PretrainingResult:
    store = CheckpointStore(str(folder))
    return run_pretraining(settings, manifests(), ArrayReader(), store, recorder or Recorder(), CPU)


def scales(result: PretrainingResult) -> list[float]:
    return [metrics["gradient_scale"] for _, metrics in result.history]


def test_steps_whose_scaled_gradients_overflow_are_skipped(tmp_path: Path) -> None:
    settings = float16_run(1e4)
    recorder = Recorder(stop_at=2)
    with pytest.raises(Interrupted):
        run(tmp_path, settings, recorder)
    logged = [metrics["gradient_scale"] for _, metrics in recorder.metrics]
    assert logged == [32768.0, 16384.0]
    assert all("gradient_norm" not in metrics for _, metrics in recorder.metrics)
    torch.manual_seed(settings.seed)
    fresh = build_pretraining_network(settings.network, settings.objective, 3, 2)
    saved = CheckpointStore(str(tmp_path)).load(2)
    assert all(torch.equal(value, saved.model[name]) for name, value in fresh.state_dict().items())
    assert saved.state["loss_scale"] == {"value": 16384.0, "steady_steps": 0}

    longer = settings.model_copy(update={"encoder": StageConfig(steps=14, warmup_steps=1)})
    result = run(tmp_path / "longer", longer)
    taken = [step for step, metrics in result.history if "gradient_norm" in metrics]
    assert taken  # and then steps are taken
    assert all(
        later in (before, before / 2)
        for before, later in zip(scales(result), scales(result)[1:], strict=False)
    )
    assert not torch.equal(result.network.encoder.stem.conv.weight, fresh.encoder.stem.conv.weight)


@pytest.mark.parametrize("stop_at", [1, 6])
def test_a_run_stopped_among_skipped_steps_goes_on_bit_for_bit(tmp_path: Path, stop_at: int) -> None:
    settings = float16_run(1e3, encoder=StageConfig(steps=8, learning_rate=1e-3, warmup_steps=1))
    whole = run(tmp_path / "whole", settings)
    assert len(set(scales(whole))) > 1  # some steps were skipped
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", settings, Recorder(stop_at=stop_at))
    resumed = run(tmp_path / "cut", settings)
    assert scales(resumed) == scales(whole)
    state = whole.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in resumed.network.state_dict().items())


def test_once_the_scale_cannot_fall_it_is_an_error(tmp_path: Path) -> None:
    settings = float16_run(1e12, encoder=StageConfig(steps=30, warmup_steps=1))
    recorder = Recorder()
    with pytest.raises(
        NonFiniteError, match=r"step 16: not finite: loss .* set precision to float32: float16"
    ):
        run(tmp_path, settings, recorder)
    assert [metrics["gradient_scale"] for _, metrics in recorder.metrics] == [
        2.0**k for k in range(15, -1, -1)
    ]


def test_a_bad_case_is_an_error_at_once(tmp_path: Path) -> None:
    store, reader = CheckpointStore(str(tmp_path)), ArrayReader("liver/case_1")
    recorder = Recorder()
    with pytest.raises(NonFiniteError, match="with samples of liver/case_1;"):
        run_pretraining(float16_run(1.0), manifests(), reader, store, recorder, CPU)
    assert all(metrics["gradient_scale"] == 65536.0 for _, metrics in recorder.metrics)
