"""Fine-tuning that is stopped or killed, and goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from hssl_dist.config.pretrain import CheckpointConfig
from hssl_dist.errors import ConfigError, Interrupted
from hssl_dist.segmentation import MeansByWay
from hssl_dist.training.checkpoint import CheckpointStore
from hssl_dist.training.supervised import Saving
from tests.tiny_supervised import (
    CONFIG,
    WITHOUT_SCORE,
    Observed,
    blob_scores,
    means_of,
    new_network,
    trained,
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Crash(Exception):
    """What a killed process does to a run: it ends, and nothing is saved."""


@dataclass
class CrashingAt(Observed):
    step: int = 0

    def on_step(self, step: int) -> None:
        super().on_step(step)
        if step == self.step:
            raise Crash


def _saving(folder: Path, should_stop: Callable[[], bool] = lambda: False, **trajectory: int) -> Saving:
    settings = CheckpointConfig(every_steps=2, keep_last=1)
    return Saving("run", {"seed": 0, **trajectory}, CheckpointStore(str(folder)), settings, should_stop)


VARIANTS = {
    "plain": {},
    "averaged": {"ema_decay": 0.9},
    "frozen first": {"freeze_steps": 5},
    "bfloat16": {"precision": "bfloat16"},
    "float16": {"precision": "float16"},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("crash_at", [3, 6, 8])
def test_a_run_killed_midway_goes_on_bit_for_bit(tmp_path: Path, variant: str, crash_at: int) -> None:
    config = CONFIG.model_copy(update={"log_every_steps": 4, **VARIANTS[variant]})
    same = {"validate": blob_scores, "rates": {"encoder": 0.5}}
    whole = trained(new_network(), config, **same)

    crashing = CrashingAt(step=crash_at)
    with pytest.raises(Crash):
        trained(new_network(), config, observer=crashing, saving=_saving(tmp_path), **same)
    again = Observed()
    torch.manual_seed(99)
    resumed = trained(new_network(), config, observer=again, saving=_saving(tmp_path), **same)

    assert again.steps == list(range((crash_at - 1) // 2 * 2 + 1, 9))
    assert (resumed.step, resumed.validation, resumed.steps) == (whole.step, whole.validation, whole.steps)
    assert [_losses(metrics) for metrics in resumed.history] == [
        _losses(metrics) for metrics in whole.history
    ]
    assert all(torch.equal(value, resumed.state[name]) for name, value in whole.state.items())


def _losses(entry: tuple[int, dict[str, float]]) -> tuple[int, dict[str, float]]:
    """A logged step without what the clock says."""
    step, metrics = entry
    return step, {key: value for key, value in metrics.items() if not key.endswith("_s")}


def test_a_stop_is_saved_at_once_and_a_finished_run_trains_no_more(tmp_path: Path) -> None:
    seen = Observed()
    stop = _saving(tmp_path, lambda: len(seen.steps) == 3)
    with pytest.raises(Interrupted, match="stopped after step 3; run it again to go on"):
        trained(new_network(), validate=blob_scores, observer=seen, saving=stop)
    assert CheckpointStore(str(tmp_path)).latest() == 3
    first = trained(new_network(), validate=blob_scores, saving=_saving(tmp_path))
    again = Observed()
    second = trained(new_network(), validate=blob_scores, observer=again, saving=_saving(tmp_path))
    assert again.steps == []
    assert second.validation == first.validation
    assert all(torch.equal(value, second.state[name]) for name, value in first.state.items())


def test_another_run_is_not_taken_for_this_one(tmp_path: Path) -> None:
    trained(new_network(), saving=_saving(tmp_path))
    with pytest.raises(ConfigError, match="run 'run' was started with labels = nothing, it is now 3; give"):
        trained(new_network(), saving=_saving(tmp_path, labels=3))


def test_training_stops_when_patience_runs_out_also_after_a_crash(tmp_path: Path) -> None:
    scores = {1: 0.2, 2: 0.5, 3: 0.4, 4: 0.5, 5: 0.9}
    config = CONFIG.model_copy(update={"validate_every": 1, "patience": 2})

    def validations() -> Callable[[nn.Module], MeansByWay]:
        numbers = iter(scores)
        return lambda _: means_of(scores[next(numbers)])

    observer, saving = Observed(), _saving(tmp_path)
    result = trained(new_network(), config, validate=validations(), observer=observer, saving=saving)
    assert observer.steps == [1, 2, 3, 4]
    assert (result.step, result.steps, result.validation) == (2, 4, means_of(0.5))
    again = Observed()
    resumed = trained(new_network(), config, validate=validations(), observer=again, saving=saving)
    assert again.steps == []
    assert (resumed.step, resumed.steps) == (2, 4)
    assert all(torch.equal(value, resumed.state[name]) for name, value in result.state.items())


def test_validations_without_a_score_do_not_try_patience() -> None:
    config = CONFIG.model_copy(update={"validate_every": 1, "patience": 1})
    result = trained(new_network(), config, validate=lambda _: WITHOUT_SCORE)
    assert result.steps == CONFIG.steps
