"""The pretraining loop in one process: what it trains, saves, resumes, refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hssl_dist.config.network import NetworkConfig
from hssl_dist.config.pretrain import (
    ObjectiveConfig,
    PretrainConfig,
    SamplingConfig,
    StageConfig,
    ViewConfig,
)
from hssl_dist.errors import CheckpointError, ConfigError, Interrupted, NonFiniteError
from hssl_dist.networks.pretraining import build_pretraining_network
from hssl_dist.sampling import PretrainingLoader, Schedule
from hssl_dist.training.checkpoint import CheckpointStore
from hssl_dist.training.health import health_warnings
from hssl_dist.training.loop import PretrainingResult, run_pretraining, stage_steps
from tests.tiny_pretraining import ArrayReader, Recorder, config, manifests

READING = ("cache_hit_share", "bytes_fetched_per_byte_used", "requests_per_region")
SPEED = ("samples_per_s", "data_wait_share", *READING)


def run(
    folder: Path,
    settings: PretrainConfig,
    recorder: Recorder | None = None,
    reader: ArrayReader | None = None,
) -> PretrainingResult:
    return run_pretraining(
        settings,
        manifests(),
        reader or ArrayReader(),
        CheckpointStore(str(folder)),
        recorder or Recorder(),
        torch.device("cpu"),
    )


def without_speed(history: list[tuple[int, dict[str, float]]]) -> list[tuple[int, dict[str, float]]]:
    return [(step, {k: v for k, v in metrics.items() if k not in SPEED}) for step, metrics in history]


def assert_same_weights(a: PretrainingResult, b: PretrainingResult) -> None:
    first, second = a.network.state_dict(), b.network.state_dict()
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def samples(folder: Path) -> dict[str, Any]:
    """What the newest checkpoint says of the samples that its weights were made of."""
    store = CheckpointStore(str(folder))
    latest = store.latest()
    assert latest is not None
    said: dict[str, Any] = store.load_state(latest)["samples"]
    return said


def test_both_stages_train_their_parts_and_log_their_terms(tmp_path: Path) -> None:
    recorder = Recorder()
    settings = config()
    assert stage_steps(settings) == {"encoder": (0, 4), "decoder": (4, 7)}
    result = run(tmp_path, settings, recorder)
    assert result.tasks == ("heart", "liver", "spleen")
    assert result.groups == ("abdomen-ct", "heart-mr")
    assert [step for step, _ in recorder.metrics] == [1, 2, 3, 4, 5, 6, 7]
    assert result.history == recorder.metrics
    assert recorder.saved == [2, 4, 6, 7]
    always = {"loss", "gradient_norm", "learning_rate", "samples_per_s", "data_wait_share"}
    health = {"image_accuracy", "effective_rank", "embedding_std", "alignment", "uniformity", "temperature"}
    health |= {"image_chance", "image_over_chance"}
    encoder = {"loss_image", "loss_task", "loss_group", "task_accuracy", "group_accuracy"}
    encoder |= {"task_probe_accuracy", "group_probe_accuracy"}
    for step, metrics in recorder.metrics:
        decoder = {"loss_dense", "loss_restoration"}
        assert metrics.keys() == always | (encoder | health if step <= 4 else decoder)
    first = recorder.metrics[0][1]
    assert first["loss"] == pytest.approx(
        first["loss_image"] + 0.5 * first["loss_task"] + 0.5 * first["loss_group"]
    )
    torch.manual_seed(settings.seed)
    fresh = build_pretraining_network(settings.network, settings.objective, 3, 2)
    for name, value in result.network.named_parameters():
        assert not torch.equal(value, fresh.get_parameter(name)), name


def test_it_learns(tmp_path: Path) -> None:
    calm = ViewConfig(
        rotation_rad=0, scale=0, noise=0, blur=0, low_resolution=0, contrast=0, brightness=0, gamma=0
    )
    network = NetworkConfig(
        widths=(8, 16, 32),
        strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
        kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        encoder_blocks=(1, 1, 1),
        decoder_blocks=(1, 1),
    )
    settings = config(
        global_batch=12,
        encoder=StageConfig(steps=60, learning_rate=1e-2, warmup_steps=2),
        decoder=StageConfig(steps=40, learning_rate=1e-2, warmup_steps=2),
        sampling=SamplingConfig(patch_size=(4, 16, 16), block_size=4),
        views=calm,
        network=network,
    )
    history = run(tmp_path, settings).history

    def early_and_late(key: str) -> tuple[float, float]:
        values = [metrics[key] for _, metrics in history if key in metrics]
        part = len(values) // 5
        return sum(values[:part]) / part, sum(values[-part:]) / part

    assert early_and_late("task_accuracy")[1] > 0.9
    for key in ("loss_image", "loss_task", "loss_group", "loss_dense", "loss_restoration"):
        early, late = early_and_late(key)
        assert late < 0.85 * early, key


@pytest.mark.parametrize("stop_at", [1, 3, 4, 6])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, stop_at: int) -> None:
    whole = run(tmp_path / "whole", config())
    recorder = Recorder(stop_at=stop_at)
    # At the last step of the encoder stage it is the decoder stage's first step that is stopped after.
    stopped = stop_at if stop_at != 4 else 5
    with pytest.raises(Interrupted, match=f"stopped after step {stopped}; run it again to go on"):
        run(tmp_path / "cut", config(), recorder)
    assert recorder.done == stopped
    assert CheckpointStore(str(tmp_path / "cut")).latest() == stopped
    resumed = run(tmp_path / "cut", config())
    assert without_speed(resumed.history) == without_speed(whole.history)
    assert_same_weights(resumed, whole)
    assert samples(tmp_path / "cut") == samples(tmp_path / "whole")


def test_a_killed_run_repeats_the_steps_after_its_checkpoint(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    class Killer(Recorder):
        def on_step(self, step: int) -> None:
            if step == 5:
                raise KilledError

    whole = run(tmp_path / "whole", config())
    with pytest.raises(KilledError):
        run(tmp_path / "cut", config(), Killer())
    assert CheckpointStore(str(tmp_path / "cut")).latest() == 4
    resumed = run(tmp_path / "cut", config())
    assert without_speed(resumed.history) == without_speed(whole.history)
    assert_same_weights(resumed, whole)
    assert samples(tmp_path / "cut") == samples(tmp_path / "whole")


def test_a_checkpoint_says_which_samples_made_it(tmp_path: Path) -> None:
    settings = config()
    run(tmp_path / "whole", settings)
    loader = PretrainingLoader(Schedule(manifests(), settings.sampling, settings.seed, 6), ArrayReader())
    digest = sum(batch.digest for batch in loader.batches(0, 7))
    assert samples(tmp_path / "whole") == {"count": 42, "digest": f"{digest % 2**64:016x}"}
    run(tmp_path / "other", config(seed=1))
    assert samples(tmp_path / "other")["digest"] != samples(tmp_path / "whole")["digest"]


def test_a_checkpoint_of_before_samples_were_told_is_gone_on_from(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path, config(), Recorder(stop_at=2))
    store = CheckpointStore(str(tmp_path))
    saved = store.load(2)
    store.save(replace(saved, state={k: v for k, v in saved.state.items() if k != "samples"}))
    run(tmp_path, config())
    assert samples(tmp_path) == {"count": 42, "digest": None}


def test_a_finished_run_gives_its_network_without_training(tmp_path: Path) -> None:
    whole = run(tmp_path, config())
    recorder = Recorder()
    again = run(tmp_path, config(), recorder)
    assert recorder.done == 0
    assert again.history == whole.history
    assert_same_weights(again, whole)


def test_another_config_under_the_same_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path, config(), Recorder(stop_at=1))
    with pytest.raises(ConfigError) as caught:
        run(tmp_path, config(seed=5, sampling=SamplingConfig(patch_size=(4, 16, 8), block_size=3)))
    assert str(caught.value) == (
        "run 'tiny' was started with sampling.patch_size = [4, 8, 8], it is now [4, 16, 8] and 1 more; "
        "give another --name, or the values it was started with"
    )
    run(tmp_path, config(workers=2, log_every_steps=3, threads_per_worker=2))


def test_a_corrupt_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path, config(), Recorder(stop_at=1))
    weights = tmp_path / "step-00000001" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"step-00000001/model\.safetensors has other bytes"):
        run(tmp_path, config())


@pytest.mark.parametrize("micro_batch", [None, 1, 4])
def test_a_sample_that_is_not_finite_is_named_and_nothing_is_saved(
    tmp_path: Path, micro_batch: int | None
) -> None:
    recorder = Recorder()
    reader = ArrayReader(poisoned="liver/case_1")
    with pytest.raises(NonFiniteError) as caught:
        run(tmp_path, config(micro_batch=micro_batch), recorder, reader)
    assert "with samples of liver/case_1; the weights are as before the step" in str(caught.value)
    store = CheckpointStore(str(tmp_path))
    assert store.latest() == (max(recorder.saved) if recorder.saved else None)


def test_a_case_that_only_the_decoder_stage_meets_is_named_too(tmp_path: Path) -> None:
    settings = config(encoder=StageConfig(steps=0), decoder=StageConfig(steps=9), micro_batch=2)
    with pytest.raises(
        NonFiniteError, match=r"not finite: (?s:.*) with samples of liver/case_1; the weights"
    ):
        run(tmp_path, settings, reader=ArrayReader(poisoned="liver/case_1"))


def test_collapse_is_warned_of_while_it_trains_and_once(tmp_path: Path) -> None:
    """A temperature so high that the embeddings stay together; stopped and resumed in between."""
    settings = config(
        objective=ObjectiveConfig(projection_size=64, temperature=1e3),
        encoder=StageConfig(steps=24, learning_rate=1e-6, warmup_steps=1),
        decoder=StageConfig(steps=0),
    )
    before, after = Recorder(stop_at=10), Recorder()
    with pytest.raises(Interrupted):
        run(tmp_path, settings, before)
    result = run(tmp_path, settings, after)
    assert [text.partition(";")[0] for _, text in before.warnings] == [
        "steps 2 to 6: the image loss stayed at 2.398, chance is 2.398: the embeddings tell no samples apart"
    ]
    assert before.warnings[0][0] == 6
    assert after.warnings == []
    assert list(health_warnings(result.history, settings).values()) == [before.warnings[0][1]]


def test_a_batch_too_small_for_two_tasks_is_warned_of_at_the_first_step(tmp_path: Path) -> None:
    settings = config(
        sampling=SamplingConfig(patch_size=(4, 8, 8), block_size=4), decoder=StageConfig(steps=0)
    )
    before, after = Recorder(stop_at=2), Recorder()
    with pytest.raises(Interrupted):
        run(tmp_path, settings, before)
    run(tmp_path, settings, after)
    assert [(step, text.partition(":")[0]) for step, text in before.warnings] == [
        (0, "each global batch of 6 is one block, of one of the 3 tasks")
    ]
    assert after.warnings == []


def test_each_depth_is_probed(tmp_path: Path) -> None:
    settings = config(
        objective=ObjectiveConfig(projection_size=8, depths=(1, 0), dense_weight=0),
        encoder=StageConfig(steps=1),
        decoder=StageConfig(steps=0),
    )
    metrics = run(tmp_path, settings).metrics
    levels = [f"{level}{kind}_accuracy" for level in ("task", "group") for kind in ("", "_probe")]
    assert {key for key in metrics if "accuracy" in key} == {
        "image_accuracy",
        *levels,
        *(f"{level}_depth_1" for level in levels),
    }


@pytest.mark.parametrize(
    ("objective", "terms"),
    [
        ({"task_weight": 0, "group_weight": 0, "restoration_weight": 0}, {"loss_image", "loss_dense"}),
        ({"image_weight": 0, "dense_weight": 0}, {"loss_task", "loss_group", "loss_restoration"}),
    ],
)
def test_terms_without_weight_are_left_out(
    tmp_path: Path, objective: dict[str, Any], terms: set[str]
) -> None:
    settings = config(objective=ObjectiveConfig(projection_size=8, dense_points=12, **objective))
    result = run(tmp_path, settings)
    assert {key for _, metrics in result.history for key in metrics if key.startswith("loss_")} == terms


def test_a_frozen_encoder_keeps_its_weights_in_the_decoder_stage(tmp_path: Path) -> None:
    both = config(decoder=StageConfig(steps=2, encoder_rate=0, warmup_steps=0))
    only_encoder = config(decoder=StageConfig(steps=0))
    after = run(tmp_path / "both", both).network.encoder.state_dict()
    before = run(tmp_path / "encoder", only_encoder).network.encoder.state_dict()
    for name in before:
        assert torch.equal(before[name], after[name])
