"""A step on CUDA: nothing in it waits for the device but the one transfer; settings change it by rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from hssl_dist.config.acceleration import StepAccelerationConfig
from hssl_dist.config.pretrain import ObjectiveConfig, PretrainConfig
from hssl_dist.networks.pretraining import build_segmentation_network
from hssl_dist.sampling.loader import Batch
from hssl_dist.training import loop, supervised
from hssl_dist.training.acceleration import accelerated
from hssl_dist.training.agreed import Agreed
from hssl_dist.training.checkpoint import CheckpointStore
from tests.tiny_pretraining import ArrayReader, Recorder, config, manifests
from tests.tiny_store import CLASSES
from tests.tiny_supervised import CONFIG, BlobReader, Observed, blob_loader, new_network
from tests.unit.training.test_step import ALL_OPTIONS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")


@contextmanager
def no_waiting() -> Iterator[None]:
    """Inside, what waits for the device raises; an event that is waited for on purpose does not."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def run(folder: Path, settings: PretrainConfig) -> dict[int, float]:
    store = CheckpointStore(str(folder))
    result = loop.run_pretraining(settings, manifests(), ArrayReader(), store, Recorder(), CUDA)
    return {step: metrics["loss"] for step, metrics in result.history}


@pytest.mark.parametrize("acceleration", [{}, {"recompute_stages": 9}, {"channels_last": True}], ids=str)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("micro_batch", [None, 2])
@pytest.mark.parametrize("objective", [{}, ALL_OPTIONS], ids=["plain", "all options"])
def test_a_step_of_pretraining_does_not_wait(
    tmp_path: Path,
    objective: dict[str, Any],
    micro_batch: int | None,
    precision: str,
    acceleration: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = config(
        log_every_steps=100, micro_batch=micro_batch, precision=precision, acceleration=acceleration
    )
    if objective:
        settings = settings.model_copy(update={"objective": ObjectiveConfig.model_validate(objective)})
    train_step, checked = loop._Loop._train_step, []

    def watched(self: loop._Loop, part: loop._Part, batch: Batch) -> Agreed:
        # A stage's first step checks that ranks agree, and its last one is logged.
        if batch.step == part.begun_at or batch.step + 1 in self.stage_ends:
            return train_step(self, part, batch)
        with no_waiting():
            agreed = train_step(self, part, batch)
        checked.append(batch.step)
        return agreed

    monkeypatch.setattr(loop._Loop, "_train_step", watched)
    run(tmp_path, settings)
    assert checked == [1, 2, 5]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_step_of_fine_tuning_does_not_wait(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train_step, checked = supervised._Training._train_step, []

    def watched(self: supervised._Training, batch: Any) -> None:
        with no_waiting():
            train_step(self, batch)
        checked.append(batch.step)

    monkeypatch.setattr(supervised._Training, "_train_step", watched)
    settings = CONFIG.model_copy(update={"precision": precision, "steps": 3})
    loader = blob_loader(BlobReader(), settings)
    supervised.run_supervised(new_network(), loader, settings, CLASSES, Observed(), CUDA)
    assert checked == [0, 1, 2]


@pytest.mark.parametrize(
    "acceleration",
    [
        {"recompute_stages": 9},
        {"channels_last": True},
        {"fused_optimiser": False},
        {"compile": True},
        {"compile": True, "recompute_stages": 1, "channels_last": True},
    ],
    ids=str,
)
def test_settings_change_a_run_by_rounding(tmp_path: Path, acceleration: dict[str, Any]) -> None:
    plain = run(tmp_path / "plain", config())
    found = run(tmp_path / "other", config(acceleration=acceleration))
    assert found == pytest.approx(plain, rel=2e-2)  # TF32 may be on


def test_a_float16_run_is_that_run_within_its_precision(tmp_path: Path) -> None:
    settings = config(precision="float16")
    plain, half = run(tmp_path / "plain", config()), run(tmp_path / "half", settings)
    assert half == pytest.approx(plain, rel=5e-2)


def test_recomputing_takes_less_memory() -> None:
    """Of a network whose activations are most of it."""
    defaults = PretrainConfig()

    def peak_bytes(stages: int) -> int:
        network = build_segmentation_network(defaults.network, 1, 3).to(CUDA)
        image = torch.randn(4, 1, 16, 96, 96, device=CUDA)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with accelerated(network, StepAccelerationConfig(recompute_stages=stages), CUDA):
            sum(logits.square().mean() for logits in network(image)).backward()
        return torch.cuda.max_memory_allocated() - before

    assert peak_bytes(2) < 0.8 * peak_bytes(0)
