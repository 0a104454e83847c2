"""Supervised training of a segmentation network; the weights that validated best are what it gives.

Every step depends on (config, seed, step) and the weights alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from hssl_dist.augment.supervised import augment_labelled
from hssl_dist.config.finetune import SupervisedConfig
from hssl_dist.errors import NonFiniteError
from hssl_dist.losses.segmentation import dice_cross_entropy
from hssl_dist.sampling.supervised import LabelledBatch, SupervisedLoader
from hssl_dist.segmentation import DiceMeans
from hssl_dist.training.optimiser import Optimiser, learning_rate_at

History = list[tuple[int, dict[str, float]]]
Validate = Callable[[nn.Module], DiceMeans]


class Observer(Protocol):
    """Who is told how training goes; steps count from 1."""

    def on_step(self, step: int) -> None:
        """Optimiser step `step` is done."""

    def on_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of the steps since the last such call, or of a validation."""


@dataclass(frozen=True, slots=True)
class SupervisedResult:
    """The best weights (on the CPU), their step and validation (None without one), and all metrics."""

    state: dict[str, Tensor]
    step: int
    validation: DiceMeans | None
    history: History


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
) -> SupervisedResult:
    """Train for `config.steps` steps; `network` is left with the best weights.

    The best are those with the highest mean validation Dice, the earliest of equals; without `validate`, or
    if it finds none of the classes, the last. `rates` gives the factor on the learning rate of a part (first
    component of a parameter's name), 0 freezes it, other parts have 1. `classes` names the scores. Raises
    NonFiniteError if the loss or a gradient becomes NaN or infinite.
    """
    network.to(device).train()
    optimiser = _build_optimiser(network, config, rates or {})
    best = _Best()
    log = _Log(observer)
    with closing(loader.batches(0, config.steps)) as batches:
        for batch in batches:
            _train_step(network, optimiser, batch, config, device, log)
            step = batch.step + 1
            last = step == config.steps
            if last or step % config.log_every_steps == 0:
                log.flush(step)
            if validate is not None and (last or step % config.validate_every == 0):
                means = validate(network)
                log.validated(step, means, classes)
                best.offer(step, means, network)
            observer.on_step(step)
    if best.validation is None:
        best.take(config.steps, None, network)
    network.load_state_dict(best.state)
    return SupervisedResult(best.state, best.step, best.validation, log.history)


def _build_optimiser(network: nn.Module, config: SupervisedConfig, rates: Mapping[str, float]) -> Optimiser:
    def rate_of(name: str) -> float:
        return rates.get(name.partition(".")[0], 1.0)

    for name, parameter in network.named_parameters():
        parameter.requires_grad_(rate_of(name) > 0)
    return Optimiser(network, weight_decay=config.weight_decay, rate_of=rate_of)


def _train_step(
    network: nn.Module,
    optimiser: Optimiser,
    batch: LabelledBatch,
    config: SupervisedConfig,
    device: torch.device,
    log: _Log,
) -> None:
    start_s = time.monotonic()
    rate = learning_rate_at(
        batch.step, peak=config.learning_rate, warmup_steps=config.warmup_steps, steps=config.steps
    )
    image = batch.image.to(device, non_blocking=True)
    label = batch.label.to(device, non_blocking=True).long()
    image, label = augment_labelled(image, label, batch.seeds)
    optimiser.zero_grad()
    loss = dice_cross_entropy(network(image), label)
    value = _finite("loss", loss, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = _finite("gradient norm", optimiser.clip(config.clip_norm), batch)
    optimiser.step(rate)
    log.add(
        loss=value,
        gradient_norm=norm,
        learning_rate=rate,
        step_s=time.monotonic() - start_s + batch.wait_s,
        wait_s=batch.wait_s,
    )


def _finite(what: str, value: Tensor, batch: LabelledBatch) -> float:
    number = value.item()
    if not math.isfinite(number):
        raise NonFiniteError(
            f"the {what} became {number} at step {batch.step + 1}; "
            "lower training.learning_rate, or look at the training cases in the quality report"
        )
    return number


@dataclass(slots=True)
class _Best:
    """The weights that validated best so far."""

    state: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    validation: DiceMeans | None = None

    def offer(self, step: int, means: DiceMeans, network: nn.Module) -> None:
        """Take the weights if they are better; a mean that is NaN is no score."""
        if math.isnan(means.overall):
            return
        if self.validation is None or means.overall > self.validation.overall:
            self.take(step, means, network)

    def take(self, step: int, means: DiceMeans | None, network: nn.Module) -> None:
        """Take the weights."""
        self.step, self.validation = step, means
        self.state = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


class _Log:
    """Means over the steps between two logs, and the history of all that was logged."""

    def __init__(self, observer: Observer) -> None:
        self.history: History = []
        self._observer = observer
        self._values: list[dict[str, float]] = []

    def add(self, **values: float) -> None:
        """Values of one step."""
        self._values.append(values)

    def flush(self, step: int) -> None:
        """Report the means since the last call; the learning rate as it is now."""
        latest = self._values[-1]
        metrics = {key: sum(values[key] for values in self._values) / len(self._values) for key in latest}
        self._values = []
        self._report(step, metrics | {"learning_rate": latest["learning_rate"]})

    def validated(self, step: int, means: DiceMeans, classes: Mapping[int, str]) -> None:
        """Report a validation: the mean and each class that any case has."""
        metrics = {"val_dice": means.overall}
        metrics |= {f"val_dice/{classes[value]}": score for value, score in means.per_class.items()}
        self._report(step, {key: score for key, score in metrics.items() if not math.isnan(score)})

    def _report(self, step: int, metrics: dict[str, float]) -> None:
        self.history.append((step, metrics))
        self._observer.on_metrics(step, metrics)
