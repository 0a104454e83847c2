"""In a step the host waits for the device once: for what it decides by. And the test that finds more can."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hssl_dist.config.pretrain import ObjectiveConfig, PretrainConfig
from hssl_dist.sampling.loader import Batch
from hssl_dist.training import loop, supervised
from hssl_dist.training.agreed import Agreed
from hssl_dist.training.checkpoint import CheckpointStore
from tests.host_waits import HostWaits
from tests.tiny_pretraining import ArrayReader, Recorder, config, manifests
from tests.tiny_supervised import CONFIG, new_network, trained
from tests.unit.training.test_step import ALL_OPTIONS

CPU = torch.device("cpu")
ONE = ["tolist in agreed.py _listed"]


def waits_of_steps(
    folder: Path, settings: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> dict[int, list[str]]:
    """By step, what would wait; of steps that nothing is logged after."""
    found: dict[int, list[str]] = {}
    train_step = loop._Loop._train_step

    def watched(self: loop._Loop, part: loop._Part, batch: Batch) -> Agreed:
        with HostWaits() as waits:
            agreed = train_step(self, part, batch)
        if self.step not in self.stage_ends:
            found[batch.step] = waits.found
        return agreed

    monkeypatch.setattr(loop._Loop, "_train_step", watched)
    store = CheckpointStore(str(folder))
    loop.run_pretraining(settings, manifests(), ArrayReader(), store, Recorder(), CPU)
    return found


@pytest.mark.parametrize(
    ("objective", "micro_batch", "precision"),
    [({}, None, "float32"), ({}, 2, "float16"), (ALL_OPTIONS, None, "float16"), (ALL_OPTIONS, 2, "float32")],
    ids=["plain", "plain in parts", "all options", "all options in parts"],
)
def test_a_step_of_pretraining_waits_once(
    tmp_path: Path,
    objective: dict[str, Any],
    micro_batch: int | None,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = config(log_every_steps=100, micro_batch=micro_batch, precision=precision)
    if objective:
        settings = settings.model_copy(update={"objective": ObjectiveConfig.model_validate(objective)})
    found = waits_of_steps(tmp_path, settings, monkeypatch)
    assert found.keys() == {0, 1, 2, 4, 5}
    # In the first step of a stage ranks also make sure that they agree on what they contrast.
    assert {step: waits for step, waits in found.items() if step not in (0, 4)} == dict.fromkeys(
        (1, 2, 5), ONE
    )


def test_a_logged_step_may_wait_more_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = waits_of_steps(tmp_path, config(log_every_steps=2), monkeypatch)
    assert found[2] == ONE
    assert len(found[1]) > 5


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_step_of_fine_tuning_waits_once(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[list[str]] = []
    train_step = supervised._Training._train_step

    def watched(self: supervised._Training, batch: Any) -> None:
        with HostWaits() as waits:
            train_step(self, batch)
        found.append(waits.found)

    monkeypatch.setattr(supervised._Training, "_train_step", watched)
    trained(new_network(), CONFIG.model_copy(update={"precision": precision, "steps": 3}))
    assert found == [ONE] * 3


X = torch.arange(4.0)


@pytest.mark.parametrize(
    "act",
    [
        lambda: float(X[0]),
        lambda: X[0].item(),
        lambda: bool(X.any()),
        lambda: X[X > 1],
        lambda: torch.nonzero(X),
        lambda: torch.bincount(X.long()),
        lambda: torch.equal(X, X),
        lambda: torch.linalg.inv(torch.eye(2)),
        lambda: torch.tensor([1.0], device=X.device),
        lambda: X.new_tensor([1.0]),
        lambda: X.to(CPU),
        lambda: X.repeat_interleave(torch.tensor([1, 2, 1, 1])),
    ],
    ids=[
        "float", "item", "bool", "mask", "nonzero", "bincount", "equal", "inverse", "tensor", "new_tensor",
        "to", "repeats",
    ],
)  # fmt: skip
def test_what_waits_is_found(act: Callable[[], Tensor]) -> None:
    with HostWaits() as waits:
        act()
    assert waits.found


@pytest.mark.parametrize(
    "act",
    [
        lambda: X.to(CPU, non_blocking=True),
        lambda: X.to(torch.float64),
        lambda: X[X.argsort()],
        lambda: torch.where(X > 1, X, 0.0),
        lambda: X.new_full((), 3.0),
    ],
    ids=["to", "cast", "rows", "where", "filled"],
)
def test_what_does_not_is_not(act: Callable[[], Tensor]) -> None:
    with HostWaits() as waits:
        act()
    assert waits.found == []
