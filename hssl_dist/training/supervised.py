"""Supervised training of a segmentation network; the weights that validated best are what it gives.

Every step depends on (config, seed, step) and the weights alone, so a run that goes on from its checkpoint
takes the same course as one that never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from hssl_dist.augment.supervised import augment_labelled
from hssl_dist.config.finetune import SupervisedConfig
from hssl_dist.config.pretrain import CheckpointConfig
from hssl_dist.errors import Interrupted, NonFiniteError
from hssl_dist.losses.segmentation import dice_cross_entropy
from hssl_dist.networks.weights import load_state
from hssl_dist.sampling.supervised import LabelledBatch, SupervisedLoader
from hssl_dist.segmentation import MeansByWay
from hssl_dist.training.acceleration import accelerated, uncompiled
from hssl_dist.training.agreed import on_host
from hssl_dist.training.averaging import WeightAverage
from hssl_dist.training.best import Best
from hssl_dist.training.checkpoint import Checkpoint, CheckpointStore
from hssl_dist.training.checkpoint_writer import CheckpointWriter
from hssl_dist.training.health import finite_samples
from hssl_dist.training.loss_scale import LossScale
from hssl_dist.training.not_finite import NotFinite, Reason, find_samples, first_few, save_samples
from hssl_dist.training.optimiser import Optimiser, learning_rate_at
from hssl_dist.training.precision import autocast, resolved
from hssl_dist.training.supervised_log import History, Log, Observer
from hssl_dist.training.trajectory import check_same

Validate = Callable[[nn.Module], MeansByWay]

_NETWORK, _AVERAGE, _BEST = "network/", "average/", "best/"


@dataclass(frozen=True, slots=True)
class Saving:
    """Where and when a run's state is saved, and what tells the run `name` from another one."""

    name: str
    trajectory: Mapping[str, Any]
    store: CheckpointStore
    settings: CheckpointConfig
    should_stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True, slots=True)
class SupervisedResult:
    """The best weights (on the CPU), their step and validation (None without one), and all metrics.

    `steps` is how many were done: fewer than configured if patience ran out.
    """

    state: dict[str, Tensor]
    step: int
    validation: MeansByWay | None
    history: History
    steps: int


def run_supervised(
    network: nn.Module,
    loader: SupervisedLoader,
    config: SupervisedConfig,
    classes: Mapping[int, str],
    observer: Observer,
    device: torch.device,
    *,
    validate: Validate | None = None,
    rates: Mapping[str, float] | None = None,
    saving: Saving | None = None,
    run_folder: str | None = None,
) -> SupervisedResult:
    """Train for `config.steps` steps, or until patience runs out; `network` is left with the best weights.

    The best are those with the highest mean validation Dice, the earliest of equals; without `validate`, or
    if it finds none of the classes, the last. `rates` gives, by beginnings of names such as `decoder` or
    `encoder.stages.0`, the factor on the learning rate of parameters taken from a model: the longest that
    fits counts, 0 freezes, and the first `config.freeze_steps` steps train none of them. Other parameters
    have factor 1. `classes` names the scores.

    With `saving` it goes on from the newest checkpoint. Raises NonFiniteError if the loss or a gradient
    becomes NaN or infinite, before the weights change; the samples are saved in `run_folder` (see
    `training.not_finite`), nowhere without it. Raises ConfigError or CheckpointError for a checkpoint of
    another run or a corrupt one, CheckpointError if new ones cannot be saved, and Interrupted once a stop was
    asked for and a checkpoint is committed.
    """
    training = _Training(
        network.to(device),
        loader,
        config,
        classes,
        observer,
        device,
        validate,
        rates or {},
        saving,
        run_folder,
    )
    training.resume()
    with training.writer or nullcontext(), accelerated(network, config.acceleration, device):
        training.run()
    return training.result()


def saved_history(store: CheckpointStore) -> History:
    """The metrics that the newest checkpoint has of the steps before it; none without a checkpoint."""
    latest = store.latest()
    if latest is None:
        return []
    return [(step, metrics) for step, metrics in store.load_state(latest)["log"]["history"]]


class _Training:
    """State of a run; `step` counts the optimiser steps done."""

    def __init__(
        self,
        network: nn.Module,
        loader: SupervisedLoader,
        config: SupervisedConfig,
        classes: Mapping[int, str],
        observer: Observer,
        device: torch.device,
        validate: Validate | None,
        rates: Mapping[str, float],
        saving: Saving | None,
        run_folder: str | None,
    ) -> None:
        self.loader, self.run_folder = loader, run_folder
        self.network, self.config, self.classes = network.train(), config, classes
        self.observer, self.device, self.validate, self.saving = observer, device, validate, saving
        self.writer = None if saving is None else _writer(saving, observer)
        self.optimiser = _build_optimiser(network, config, rates)
        self.transferred = [
            value for name, value in self.optimiser.parameters.items() if _rate(name, rates) is not None
        ]
        self.average = None if config.ema_decay is None else WeightAverage(network, config.ema_decay)
        self.loss_scale = LossScale() if resolved(config.precision, device) == "float16" else None
        self.best, self.log, self.step = Best(), Log(observer), 0

    @property
    def validated(self) -> nn.Module:
        """The network that is validated and kept."""
        return self.network if self.average is None else self.average.network

    @property
    def finished(self) -> bool:
        """Whether no step is left, or patience has run out."""
        patience = self.config.patience
        return self.step == self.config.steps or (patience is not None and self.best.stale >= patience)

    def run(self) -> None:
        """The steps that are left."""
        if self.finished:
            return
        with closing(self.loader.batches(self.step, self.config.steps)) as batches:
            for batch in batches:
                self._freeze(batch.step)
                self._train_step(batch)
                self.step = batch.step + 1
                self._look()
                self.observer.on_step(self.step)
                self._save_if_due()
                if self.finished:
                    break

    def result(self) -> SupervisedResult:
        """The best weights, which the network gets."""
        if self.best.validation is None:
            self.best.take(self.step, None, self.validated)
        load_state(self.network, self.best.state)
        return SupervisedResult(
            self.best.state, self.best.step, self.best.validation, self.log.history, self.step
        )

    # -------------------------------------------------------------------------------------------------- steps

    def _freeze(self, step: int) -> None:
        """Whether optimiser step `step` (from 0) trains what was taken from a model."""
        for value in self.transferred:
            value.requires_grad_(step >= self.config.freeze_steps)

    def _train_step(self, batch: LabelledBatch) -> None:
        start_s = time.monotonic()
        config = self.config
        rate = learning_rate_at(
            batch.step, peak=config.learning_rate, warmup_steps=config.warmup_steps, steps=config.steps
        )
        image = batch.image.to(self.device, non_blocking=True)
        label = batch.label.to(self.device, non_blocking=True)
        image, label = augment_labelled(image, label, batch.seeds, config.augmentation)
        self.optimiser.zero_grad()
        with self._autocast():
            outputs = self.network(image)
        loss = dice_cross_entropy(outputs, label)
        scale = 1.0 if self.loss_scale is None else self.loss_scale.value
        loss.backward(torch.full_like(loss, scale))  # type: ignore[no-untyped-call]
        norm = self.optimiser.clip(config.clip_norm, scale)
        lost, length = on_host(torch.stack((loss.detach(), norm)))  # once a step the host waits
        if not self._update(rate, lost, length):
            self._refuse(batch, outputs, {"loss": lost, "gradient norm": length})
        if self.average is not None:
            self.average.update(self.network, batch.step + 1)
        self.log.add(
            loss=lost,
            gradient_norm=length,
            learning_rate=rate,
            step_s=time.monotonic() - start_s + batch.wait_s,
            wait_s=batch.wait_s,
            **({} if self.loss_scale is None else {"gradient_scale": self.loss_scale.value}),
        )

    def _update(self, rate: float, loss: float, norm: float) -> bool:
        """Change the weights, or skip the step if only a scaled gradient is not finite; False if more is."""
        scale = self.loss_scale
        if math.isfinite(loss) and math.isfinite(norm):
            self.optimiser.step(rate)
            self.loss_scale = scale and scale.after_step()
            return True
        if scale is not None and scale.can_fall and math.isfinite(loss):
            self.optimiser.skip()
            self.loss_scale = scale.after_overflow()
            return True
        return False

    def _refuse(
        self, batch: LabelledBatch, outputs: Tensor | Sequence[Tensor], values: Mapping[str, float]
    ) -> NoReturn:
        """Raise NonFiniteError, naming the samples: those with a bad image, else a bad output, else all."""
        count = len(batch.seeds)
        logits = [outputs] if isinstance(outputs, Tensor) else outputs
        checks: dict[Reason, Tensor] = {
            "region": finite_samples([batch.image], count),
            "output": finite_samples(logits, count),
        }
        reason, found = find_samples(checks, torch.arange(count))
        samples = []
        for index in first_few(found, batch.image[0].nbytes + batch.label[0].nbytes):
            record, regions = self.loader.draw(batch.step, index)
            tensors = {"image": batch.image[index : index + 1], "label": batch.label[index : index + 1]}
            samples.append(NotFinite(index, batch.seeds[index], reason, record, tuple(regions), tensors))
        saved = save_samples(self.run_folder, batch.step, samples, values, self.device)
        names = dict.fromkeys(f"{sample.record.dataset}/{sample.record.id}" for sample in samples)
        what, number = next((what, value) for what, value in values.items() if not math.isfinite(value))
        raise NonFiniteError(
            f"the {what} became {number} at step {batch.step + 1}; lower training.learning_rate, or look at "
            f"the training cases in the quality report, first at {', '.join(names)}{saved}"
        )

    def _look(self) -> None:
        """Log and validate if this step is due for it."""
        last = self.step == self.config.steps
        if last or self.step % self.config.log_every_steps == 0:
            self.log.flush(self.step)
        if self.validate is not None and (last or self.step % self.config.validate_every == 0):
            with self._autocast(), uncompiled(self.config.acceleration):
                means = self.validate(self.validated)
            self.log.validated(self.step, means["never"], self.classes)
            self.best.offer(self.step, means, self.validated)

    def _autocast(self) -> torch.autocast:
        return autocast(self.config.precision, self.device)

    # -------------------------------------------------------------------------------------------- saved state

    def resume(self) -> None:
        """Take over the newest checkpoint, if there is one."""
        latest = None if self.saving is None else self.saving.store.latest()
        if self.saving is None or latest is None:
            return
        saved = self.saving.store.load(latest)
        check_same(self.saving.name, saved.state["trajectory"], self.saving.trajectory)
        load_state(self.network, _below(_NETWORK, saved.model))
        if self.average is not None:
            load_state(self.average.network, _below(_AVERAGE, saved.model))
        self.best = Best.from_json(saved.state["best"], _below(_BEST, saved.model))
        self.log.load(saved.state["log"])
        self.step = saved.step
        if self.loss_scale is not None:
            self.loss_scale = LossScale.of_state(saved.state.get("loss_scale"))
        self._freeze(self.step - 1)
        self.optimiser.load_state(saved.optimizer)

    def _save_if_due(self) -> None:
        if self.saving is None or self.writer is None:
            return
        self.writer.poll()
        stop = self.saving.should_stop()
        wait = stop or self.finished
        if wait or self.step % self.saving.settings.every_steps == 0:
            self.writer.save(self._checkpoint(self.saving), wait=wait)
        if stop and not self.finished:
            raise Interrupted(f"stopped after step {self.step}; run it again to go on")

    def _checkpoint(self, saving: Saving) -> Checkpoint:
        model = _above(_NETWORK, self.network.state_dict()) | _above(_BEST, self.best.state)
        if self.average is not None:
            model |= _above(_AVERAGE, self.average.network.state_dict())
        state = {
            "trajectory": dict(saving.trajectory),
            "best": self.best.as_json(),
            "log": self.log.as_json(),
            "loss_scale": self.loss_scale and self.loss_scale.to_state(),
        }
        return Checkpoint(self.step, model, self.optimiser.state(), state)


def _writer(saving: Saving, observer: Observer) -> CheckpointWriter:
    return CheckpointWriter(saving.store, saving.settings, lambda *_: None, observer.on_warning)


def _above(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


# ----------------------------------------------------------------------------------------------------- pieces


def _build_optimiser(network: nn.Module, config: SupervisedConfig, rates: Mapping[str, float]) -> Optimiser:
    def rate_of(name: str) -> float:
        rate = _rate(name, rates)
        return 1.0 if rate is None else rate

    for name, parameter in network.named_parameters():
        if rate_of(name) == 0.0:
            parameter.requires_grad = False
    return Optimiser(
        network,
        weight_decay=config.weight_decay,
        rate_of=rate_of,
        fused=config.acceleration.fused_optimiser,
    )


def _rate(name: str, rates: Mapping[str, float]) -> float | None:
    """The rate of the longest key that is the parameter's name up to one of its dots."""
    while name:
        if name in rates:
            return rates[name]
        name = name.rpartition(".")[0]
    return None
