"""The product's arm: `run_pretraining` on a store, with its own loader, objective, optimiser and checkpoints.

Its callbacks tell when a step is done; timers around its functions (`step_phases`) tell what it spent it on.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.callbacks import Silent
from benchmarks.step_data import Workload
from benchmarks.step_phases import Phases, averaging_s, watching
from hssl_dist import collectives
from hssl_dist.config.acceleration import StepAccelerationConfig
from hssl_dist.config.pretrain import PretrainConfig, StageConfig
from hssl_dist.errors import Interrupted
from hssl_dist.memory import freed_memory_kept
from hssl_dist.training.checkpoint import CheckpointStore
from hssl_dist.training.loop import run_pretraining
from hssl_dist.training.precision import resolved

if TYPE_CHECKING:
    from benchmarks.step_turns import ArmSpec, Turns

_FOR_EVER = 1_000_000


def run(spec: ArmSpec, turns: Turns | None) -> None:
    """Pretrain one stage until the turns end."""
    workload = Workload(spec.folder)
    config = only_stage(workload.of(PretrainConfig.model_validate(spec.config)), spec.stage)
    device = torch.device(spec.device, collectives.rank()) if spec.device == "cuda" else torch.device("cpu")
    phases = Phases(device)
    callbacks = _Callbacks(turns, phases, config, device)
    name = spec.name.replace(" ", "-").replace("/", "-")
    store = CheckpointStore(f"{spec.folder}/runs/{name}-{os.getpid() if not spec.together else 0}")
    with watching(phases), suppress(Interrupted), kept_memory(config.acceleration, device):
        run_pretraining(config, workload.manifests(), workload.reader(), store, callbacks, device)


def only_stage(config: PretrainConfig, stage: str) -> PretrainConfig:
    """The run with one stage, which does not end by itself."""
    stages: dict[str, StageConfig] = {
        name: getattr(config, name).model_copy(update={"steps": _FOR_EVER if name == stage else 0})
        for name in ("encoder", "decoder")
    }
    return config.model_copy(update=stages)


class _Callbacks(Silent):
    """Callbacks that hand each step to the turns; the second step's operations are counted."""

    def __init__(
        self, turns: Turns | None, phases: Phases, config: PretrainConfig, device: torch.device
    ) -> None:
        self._turns, self._phases, self._config, self._device = turns, phases, config, device
        self._counter: FlopCounterMode | None = None
        self._flops: dict[str, int] = {}
        self._averaging = [0.0, 0.0]
        self._warnings: list[str] = []

    def on_step(self, step: int) -> None:
        """Count the first step's successor, and let the turns have the step."""
        if self._turns is None:  # a run beside the one that is measured
            return
        if step == 1 and not self._config.acceleration.compile:  # what is compiled cannot be counted
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()
        elif self._counter is not None:
            self._counter.__exit__(None, None, None)
            self._flops = operations(self._counter)
            self._counter = None
        whole, hidden = averaging_s(self._phases.wrapped)
        self._averaging[0] += whole
        self._averaging[1] += hidden
        self._turns.after_step(self._finish, self._begin, self._about, self._drain)

    def _about(self) -> dict[str, Any]:
        config = self._config
        return {
            "samples_per_step": config.global_batch,
            "patch": list(config.sampling.patch_size),
            "precision": resolved(config.precision, self._device),
            "flops_per_step": self._flops,
        }

    def _begin(self) -> None:
        self._averaging = [0.0, 0.0]
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._phases.begin()

    def _finish(self) -> dict[str, Any]:
        seconds = self._phases.take()
        whole, hidden = self._averaging
        exposed = min(max(whole - hidden, 0.0), seconds["backward"])
        seconds["backward"] -= exposed
        seconds["communication"] += exposed
        figures: dict[str, Any] = {"phases": seconds, "averaging_s": whole, "averaging_hidden_s": hidden}
        if self._warnings:
            figures["warnings"] = self._warnings
        return figures | device_memory(self._device)

    def _drain(self) -> None:
        drain(self._device)

    def on_warning(self, step: int, text: str) -> None:
        """Kept: the figures of a run that is not healthy must say so."""
        self._warnings.append(f"step {step}: {text}")


def kept_memory(settings: StepAccelerationConfig, device: torch.device) -> AbstractContextManager[None]:
    """Freed memory as the jobs have it, which call the loops."""
    return freed_memory_kept(settings.keep_freed_memory and device.type == "cpu")


def operations(counter: FlopCounterMode) -> dict[str, int]:
    """Floating-point operations by operator; a multiplication and an addition are two."""
    counts = counter.get_flop_counts().get("Global", {})
    return {str(name).removeprefix("aten."): int(count) for name, count in counts.items()}


def drain(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def device_memory(device: torch.device) -> dict[str, float]:
    """The most memory of a GPU since its count was reset: of tensors, and of what torch has reserved."""
    if device.type != "cuda":
        return {}
    taken = {
        "gpu_mib": torch.cuda.max_memory_allocated(),
        "gpu_reserved_mib": torch.cuda.max_memory_reserved(),
    }
    return {name: round(size / (1 << 20), 1) for name, size in taken.items()}
