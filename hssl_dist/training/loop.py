"""The pretraining loop: encoder stage, then decoder stage, on one process or on all ranks of a group.

Everything a step does depends on (config, seed, step) and the weights alone: the loop can stop after any step
and go on from its checkpoint, on another number of ranks too. All ranks run the same steps; rank 0 alone
writes checkpoints and reports. Checkpoints must be where every rank can read them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hssl_dist import collectives, watchdog
from hssl_dist.config.pretrain import PretrainConfig, StageConfig
from hssl_dist.errors import CheckpointError, ConfigError, Interrupted
from hssl_dist.networks.pretraining import PretrainingNetwork, Stage, build_pretraining_network
from hssl_dist.networks.weights import load_state
from hssl_dist.records import Manifest
from hssl_dist.sampling.loader import Batch, PretrainingLoader, rank_slice
from hssl_dist.sampling.schedule import Schedule
from hssl_dist.store import ReadFigures
from hssl_dist.training.acceleration import accelerated, distributed
from hssl_dist.training.agreed import NORM, Agreed, agree
from hssl_dist.training.callbacks import Callbacks
from hssl_dist.training.checkpoint import Checkpoint, CheckpointStore
from hssl_dist.training.checkpoint_writer import CheckpointWriter
from hssl_dist.training.health import batch_finding, findings, health_warnings
from hssl_dist.training.loss_scale import LossScale
from hssl_dist.training.monitoring import monitored, reading_shares
from hssl_dist.training.objective import Samples
from hssl_dist.training.optimiser import Optimiser, learning_rate_at
from hssl_dist.training.precision import resolved
from hssl_dist.training.refusal import refuse
from hssl_dist.training.seen import SamplesSeen
from hssl_dist.training.step import StepLoss, backward
from hssl_dist.training.trajectory import check_same, trajectory

if TYPE_CHECKING:
    from hssl_dist.store import Reader

History = list[tuple[int, dict[str, float]]]


@dataclass(frozen=True, slots=True)
class PretrainingResult:
    """A finished run: its network, what defined it, and the metrics of every logged step (on rank 0).

    `cases` are those that regions were drawn from, by dataset.
    """

    network: PretrainingNetwork
    tasks: tuple[str, ...]
    groups: tuple[str, ...]
    cases: dict[str, tuple[str, ...]]
    trajectory: dict[str, Any]
    history: History

    @property
    def metrics(self) -> dict[str, float]:
        """The newest value of each metric."""
        return newest(self.history)


def newest(history: History) -> dict[str, float]:
    """The newest value of each metric of a history."""
    return {key: value for _, metrics in history for key, value in metrics.items()}


def run_pretraining(
    config: PretrainConfig,
    manifests: Mapping[str, Manifest],
    reader: Reader,
    checkpoints: CheckpointStore,
    callbacks: Callbacks,
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    run_folder: str | None = None,
) -> PretrainingResult:
    """Train to the end, from the newest checkpoint if there is one.

    Samples that are not finite are saved in `run_folder` (see `training.not_finite`); nowhere without it.
    Raises ConfigError if the checkpoints are of a run with another trajectory or there are more ranks than
    samples in a global batch, CheckpointError if the newest is corrupt or new ones cannot be saved (on all
    ranks), NonFiniteError (on all ranks, before the weights change) naming the samples, CollectiveError if a
    rank does not come to a collective, and Interrupted once a stop was asked for and a checkpoint is
    committed.
    """
    if config.global_batch < collectives.world_size():
        raise ConfigError(
            f"global_batch {config.global_batch} cannot be split over {collectives.world_size()} ranks; "
            "start fewer ranks"
        )
    loop = _Loop(config, manifests, reader, checkpoints, callbacks, device, dtype, run_folder)
    with loop.writer, accelerated(loop.network, config.acceleration, device):
        loop.resume()
        loop.warn_of_batches()
        for stage, (first, last) in stage_steps(config).items():
            if loop.step < last:
                loop.train(stage, first, last)
    collectives.barrier(config.collective_timeout_s)
    schedule = loop.schedule
    return PretrainingResult(
        loop.network, schedule.tasks, schedule.groups, schedule.case_ids(), loop.trajectory, loop.history
    )


def stage_steps(config: PretrainConfig) -> dict[Stage, tuple[int, int]]:
    """The steps `first <= step < last` of each stage, in order."""
    between, last = config.encoder.steps, config.encoder.steps + config.decoder.steps
    return {"encoder": (0, between), "decoder": (between, last)}


@dataclass(slots=True)
class _Interval:
    """Sums since the last log or the last checkpoint."""

    steps: int = 0
    loss: float = 0.0
    wait_s: float = 0.0
    reading: ReadFigures = field(default_factory=ReadFigures)
    start_s: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class _Part:
    """What a stage, of steps `first <= step < last`, is trained with, by this process from `begun_at` on."""

    stage: Stage
    settings: StageConfig
    first: int
    last: int
    optimiser: Optimiser
    wrapped: nn.Module
    begun_at: int

    def rate_at(self, step: int) -> float:
        """The learning rate."""
        return learning_rate_at(
            step - self.first,
            peak=self.settings.learning_rate,
            warmup_steps=self.settings.warmup_steps,
            steps=self.last - self.first,
        )


class _Loop:
    """State of the loop on one rank; `step` counts the optimiser steps done."""

    def __init__(
        self,
        config: PretrainConfig,
        manifests: Mapping[str, Manifest],
        reader: Reader,
        checkpoints: CheckpointStore,
        callbacks: Callbacks,
        device: torch.device,
        dtype: torch.dtype,
        run_folder: str | None,
    ) -> None:
        self.config, self.checkpoints, self.callbacks = config, checkpoints, callbacks
        self.device, self.dtype, self.run_folder = device, dtype, run_folder
        self.reader = reader
        self.writer = CheckpointWriter(
            checkpoints,
            config.checkpoint,
            callbacks.on_checkpoint,
            callbacks.on_warning,
            longest_wait_s=config.collective_timeout_s / 2,  # the other ranks wait meanwhile
        )
        self.trajectory = trajectory(config, manifests)
        self.schedule = Schedule(manifests, config.sampling, config.seed, config.global_batch)
        ranks = collectives.world_size()
        self.loader = PretrainingLoader(
            self.schedule, reader, collectives.rank(), ranks, pin_memory=device.type == "cuda"
        )
        self.counts = tuple(len(rank_slice(config.global_batch, rank, ranks)) for rank in range(ranks))
        self.network = _new_network(config, self.schedule).to(device, dtype)
        self.loss_scale = LossScale() if resolved(config.precision, device) == "float16" else None
        self.optimiser_state: Mapping[str, torch.Tensor] = {}
        self.step = 0
        self.stage_ends = {last for _, last in stage_steps(config).values()}
        self.history: History = []
        self.seen = SamplesSeen()
        self.warned: set[str] = set()
        self.since_log, self.since_checkpoint = self._new_interval(), _Interval()

    # ------------------------------------------------------------------------------------------- saved state

    def resume(self) -> None:
        """Take over the newest checkpoint; rank 0 says which it is."""
        latest = collectives.broadcast_object(self.checkpoints.latest() if collectives.rank() == 0 else None)
        if latest is None:
            return
        saved = self.checkpoints.load(latest)
        check_same(self.config.name, saved.state["trajectory"], self.trajectory)
        load_state(self.network, saved.model)
        self.step = saved.step
        self.history = [(step, metrics) for step, metrics in saved.state["history"]]
        self.seen = SamplesSeen.of_state(saved.state, self.step * self.config.global_batch)
        self.warned = set(health_warnings(self.history, self.config))
        self.optimiser_state = saved.optimizer
        if self.loss_scale is not None:
            self.loss_scale = LossScale.of_state(saved.state.get("loss_scale"))

    def warn_of_batches(self) -> None:
        """Rank 0 of a new run says what is wrong with its batches before it makes any."""
        found = batch_finding(self.config, len(self.schedule.tasks), self.schedule.blocks)
        if found and self.step == 0 and collectives.rank() == 0:
            self.callbacks.on_warning(0, found)

    def save(self, stage: Stage, optimiser: Optimiser, *, wait: bool) -> None:
        """Rank 0 saves, with `wait` until that is committed. Raises CheckpointError on all ranks alike."""
        mean = self.since_checkpoint.loss / max(1, self.since_checkpoint.steps)
        self.since_checkpoint = _Interval()
        failure: CheckpointError | None = None
        if collectives.rank() == 0:
            checkpoint = Checkpoint(
                step=self.step,
                model=self.network.state_dict(),
                optimizer=optimiser.state(),
                state={
                    "trajectory": self.trajectory,
                    "history": self.history,
                    "samples": self.seen.to_state(),
                    "stage": stage,
                    "loss_scale": self.loss_scale and self.loss_scale.to_state(),
                },
            )
            try:
                self.writer.save(checkpoint, series=stage, score=mean, wait=wait)
            except CheckpointError as error:
                failure = error
        said = collectives.broadcast_object(None if failure is None else str(failure))
        if said is not None:
            raise failure or CheckpointError(said)

    # -------------------------------------------------------------------------------------------------- steps

    def train(self, stage: Stage, first: int, last: int) -> None:
        """The rest of one stage, with a checkpoint at its end."""
        settings: StageConfig = getattr(self.config, stage)
        self.network.set_stage(stage, encoder_trainable=settings.encoder_rate > 0)
        optimiser = Optimiser(
            self.network,
            weight_decay=settings.weight_decay,
            rate_of=lambda name: settings.encoder_rate if name.startswith("encoder.") else 1.0,
            fused=self.config.acceleration.fused_optimiser,
        )
        if self.step > first:
            optimiser.load_state(self.optimiser_state)
        self.optimiser_state = {}
        wrapped = distributed(self.network, self.config.acceleration, self.device)
        part = _Part(stage, settings, first, last, optimiser, wrapped, begun_at=self.step)
        self.since_log, self.since_checkpoint = self._new_interval(), _Interval()
        with closing(self.loader.batches(self.step, last)) as batches:
            for batch in batches:
                agreed = self._train_step(part, batch)
                self.writer.poll()
                wait = agreed.stop or self.step == last or (agreed.look and self.callbacks.is_losing_ranks())
                if wait or self.step % self.config.checkpoint.every_steps == 0:
                    self.save(stage, optimiser, wait=wait)
                if agreed.stop and self.step < last:
                    collectives.barrier(self.config.collective_timeout_s)
                    raise Interrupted(f"stopped after step {self.step}; run it again to go on")

    def _train_step(self, part: _Part, batch: Batch) -> Agreed:
        """One optimiser step; the host waits for the device in `agree` alone, unless the step is logged."""
        watchdog.begin_step(batch.step)
        # In the first step ranks ask each other whether they agree on what they contrast, and then no more.
        samples = self._samples(batch, counts=self.counts if batch.step > part.begun_at else None)
        part.optimiser.zero_grad()
        scale = 1.0 if self.loss_scale is None else self.loss_scale.value
        loss = backward(part.stage, samples, self.network, part.wrapped, self.config, scale)
        norm = part.optimiser.clip(part.settings.clip_norm, scale)
        agreed = agree(
            {"loss": loss.total, **{f"loss_{name}": term for name, term in loss.terms.items()}, NORM: norm},
            stop=self.callbacks.should_stop(),
            look=self.callbacks.should_look(),
            samples=len(batch.indices),
            digest=batch.digest,
        )
        rate = part.rate_at(batch.step)
        self._update(part, batch, samples, agreed, rate)
        self.step += 1
        self.seen = self.seen.with_step(agreed.samples, agreed.digest)
        for interval in (self.since_log, self.since_checkpoint):
            interval.steps += 1
            interval.loss += agreed.values["loss"]
            interval.wait_s += batch.wait_s
        if self.step % self.config.log_every_steps == 0 or self.step in self.stage_ends:
            self._log({**agreed.values, "learning_rate": rate}, loss, samples)
        if collectives.rank() == 0:
            self.callbacks.on_step(self.step)
        return agreed

    def _update(self, part: _Part, batch: Batch, samples: Samples, agreed: Agreed, rate: float) -> None:
        """Change the weights if all is finite; skip it if only a scaled gradient is not, else refuse."""
        scale = self.loss_scale
        if agreed.finite:
            part.optimiser.step(rate)
            self.loss_scale = scale and scale.after_step()
        elif scale is not None and scale.can_fall and agreed.overflow:
            part.optimiser.skip()
            self.loss_scale = scale.after_overflow()
        else:
            place = self.schedule, self.run_folder
            refuse(part.stage, batch, samples, agreed.values, self.network, self.config, *place)

    def _samples(self, batch: Batch, counts: tuple[int, ...] | None) -> Samples:
        """The batch as the objective wants it; regions stay where they are until a micro-batch needs them."""
        numbers = torch.tensor(batch.indices)
        relatives = {"none": numbers, "case": batch.cases, "patient": batch.patients}

        def sent(values: torch.Tensor) -> torch.Tensor:
            return values.to(self.device, non_blocking=True)

        return Samples(
            regions=batch.regions,
            tasks=sent(batch.tasks),
            groups=sent(batch.groups),
            numbers=sent(numbers),
            relatives=sent(relatives[self.config.objective.exclude_false_negatives]),
            seeds=batch.seeds,
            counts=counts,
        )

    # ------------------------------------------------------------------------------------------------ metrics

    def _new_interval(self) -> _Interval:
        return _Interval(reading=self.reader.figures())

    def _log(self, values: dict[str, float], loss: StepLoss, samples: Samples) -> None:
        """Complete the metrics of this step and report them; all ranks take part."""
        if self.loss_scale is not None:  # by which some steps are skipped: their gradients are no numbers
            values = {name: value for name, value in values.items() if math.isfinite(value)}
            values["gradient_scale"] = self.loss_scale.value
        metrics = {**values, **monitored(loss, samples, self.config.objective)}
        if "image" in loss.terms:
            metrics["temperature"] = float(self.network.temperature.detach())
        elapsed_s = max(time.monotonic() - self.since_log.start_s, 1e-9)
        metrics["samples_per_s"] = self.config.global_batch * self.since_log.steps / elapsed_s
        metrics["data_wait_share"] = self.since_log.wait_s / elapsed_s
        metrics |= reading_shares(self.reader.figures() - self.since_log.reading)
        self.since_log = self._new_interval()
        if collectives.rank() == 0:
            self.history.append((self.step, metrics))
            self.callbacks.on_metrics(self.step, metrics)
            found = findings(self.history, self.config)
            for kind in sorted(found.keys() - self.warned):
                self.warned.add(kind)
                self.callbacks.on_warning(self.step, found[kind])


def _new_network(config: PretrainConfig, schedule: Schedule) -> PretrainingNetwork:
    """The network with the initial weights of the config's seed, whatever the process did before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return build_pretraining_network(
            config.network, config.objective, len(schedule.tasks), len(schedule.groups)
        )
