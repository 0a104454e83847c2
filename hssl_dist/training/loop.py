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
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hssl_dist import collectives, watchdog
from hssl_dist.config.pretrain import PretrainConfig, StageConfig
from hssl_dist.errors import CheckpointError, ConfigError, Interrupted, NonFiniteError
from hssl_dist.networks.pretraining import PretrainingNetwork, Stage, build_pretraining_network
from hssl_dist.networks.weights import load_state
from hssl_dist.records import Manifest
from hssl_dist.sampling.loader import Batch, PretrainingLoader
from hssl_dist.sampling.schedule import Schedule
from hssl_dist.store import ReadFigures
from hssl_dist.training.callbacks import Callbacks
from hssl_dist.training.checkpoint import Checkpoint, CheckpointStore
from hssl_dist.training.checkpoint_writer import CheckpointWriter
from hssl_dist.training.health import findings, finite_samples, health_warnings
from hssl_dist.training.monitoring import monitored, reading_shares
from hssl_dist.training.not_finite import NotFinite, Reason, find_samples, first_few, save_samples
from hssl_dist.training.objective import Samples
from hssl_dist.training.optimiser import Optimiser, learning_rate_at
from hssl_dist.training.seen import SamplesSeen
from hssl_dist.training.step import StepLoss, backward, finite_outputs
from hssl_dist.training.trajectory import check_same, trajectory

if TYPE_CHECKING:
    from hssl_dist.store import Reader

History = list[tuple[int, dict[str, float]]]
_NAMED_SAMPLES = 8


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
    with loop.writer:
        loop.resume()
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
class _Agreed:
    """What all ranks know of a step: means of the metrics, whether all of it is finite, what any rank was
    asked, and the samples of all.
    """

    values: dict[str, float]
    finite: bool
    stop: bool
    look: bool
    samples: int
    digest: int


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
        self.loader = PretrainingLoader(
            self.schedule,
            reader,
            collectives.rank(),
            collectives.world_size(),
            pin_memory=device.type == "cuda",
        )
        self.network = _new_network(config, self.schedule).to(device, dtype)
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
        )
        if self.step > first:
            optimiser.load_state(self.optimiser_state)
        self.optimiser_state = {}
        wrapped = _distributed(self.network, self.device)
        self.since_log, self.since_checkpoint = self._new_interval(), _Interval()
        with closing(self.loader.batches(self.step, last)) as batches:
            for batch in batches:
                rate = learning_rate_at(
                    batch.step - first,
                    peak=settings.learning_rate,
                    warmup_steps=settings.warmup_steps,
                    steps=last - first,
                )
                agreed = self._train_step(stage, batch, wrapped, optimiser, rate, settings.clip_norm)
                self.writer.poll()
                wait = agreed.stop or self.step == last or (agreed.look and self.callbacks.is_losing_ranks())
                if wait or self.step % self.config.checkpoint.every_steps == 0:
                    self.save(stage, optimiser, wait=wait)
                if agreed.stop and self.step < last:
                    collectives.barrier(self.config.collective_timeout_s)
                    raise Interrupted(f"stopped after step {self.step}; run it again to go on")

    def _train_step(
        self,
        stage: Stage,
        batch: Batch,
        wrapped: nn.Module,
        optimiser: Optimiser,
        rate: float,
        clip_norm: float,
    ) -> _Agreed:
        """One optimiser step."""
        watchdog.begin_step(batch.step)
        samples = self._samples(batch)
        optimiser.zero_grad()
        loss = backward(stage, samples, self.network, wrapped, self.config)
        norm = optimiser.clip(clip_norm)
        metrics = {"loss": loss.total, **{f"loss_{name}": term for name, term in loss.terms.items()}}
        agreed = self._agree({**metrics, "gradient_norm": norm}, batch)
        if not agreed.finite:
            self._refuse(stage, batch, samples, agreed.values)
        optimiser.step(rate)
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

    def _samples(self, batch: Batch) -> Samples:
        """The batch as the objective wants it; regions stay where they are until a micro-batch needs them."""
        numbers = torch.tensor(batch.indices)
        relatives = {"none": numbers, "case": batch.cases, "patient": batch.patients}
        return Samples(
            regions=batch.regions,
            tasks=batch.tasks.to(self.device),
            groups=batch.groups.to(self.device),
            numbers=numbers.to(self.device),
            relatives=relatives[self.config.objective.exclude_false_negatives].to(self.device),
            seeds=batch.seeds,
        )

    def _agree(self, metrics: Mapping[str, torch.Tensor], batch: Batch) -> _Agreed:
        """What all ranks know of a step."""
        own = torch.stack([value.detach().double() for value in metrics.values()])
        flags = (self.callbacks.should_stop(), self.callbacks.should_look())
        rest = own.new_tensor((*flags, len(batch.indices), batch.digest))
        numbers = collectives.all_reduce_sum(torch.cat((own, rest))).tolist()
        *sums, stop, look, count, digest = numbers
        means = {name: total / collectives.world_size() for name, total in zip(metrics, sums, strict=True)}
        finite = all(map(math.isfinite, numbers))
        return _Agreed(means, finite, stop > 0, look > 0, samples=int(count), digest=int(digest))

    def _refuse(self, stage: Stage, batch: Batch, samples: Samples, values: Mapping[str, float]) -> NoReturn:
        """Raise NonFiniteError on all ranks, naming the samples: bad regions, else bad outputs, else all."""
        checks: dict[Reason, torch.Tensor] = {
            "region": finite_samples([samples.regions.values()], len(batch.indices)),
            "output": finite_outputs(stage, samples, self.network, self.config),
        }
        reason, found = find_samples(checks, samples.numbers)
        records = [self.schedule.draw(batch.step, index).record for index in found]
        names = list(dict.fromkeys(f"{record.dataset}/{record.id}" for record in records))
        more = f" and {len(names) - _NAMED_SAMPLES} more" if len(names) > _NAMED_SAMPLES else ""
        terms = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        kept = first_few(found, batch.regions.numbers[0].nbytes)
        own = [self._not_finite(stage, batch, index, reason) for index in kept if index in batch.indices]
        saved = save_samples(self.run_folder, batch.step, own, values, self.device)
        raise NonFiniteError(
            f"step {batch.step}: not finite: {terms}; with samples of "
            f"{', '.join(names[:_NAMED_SAMPLES])}{more}; the weights are as before the step: look at these "
            f"cases, or lower the learning rate{saved}"
        )

    def _not_finite(self, stage: Stage, batch: Batch, index: int, reason: Reason) -> NotFinite:
        """One of this rank's samples, as it is saved."""
        place = batch.indices.index(index)
        draw = self.schedule.draw(batch.step, index)
        return NotFinite(
            index=index,
            seed=batch.seeds[place],
            reason=reason,
            record=draw.record,
            regions=(draw.region,),
            tensors=batch.regions[place : place + 1].tensors(),
            facts={"stage": stage},
        )

    # ------------------------------------------------------------------------------------------------ metrics

    def _new_interval(self) -> _Interval:
        return _Interval(reading=self.reader.figures())

    def _log(self, values: dict[str, float], loss: StepLoss, samples: Samples) -> None:
        """Complete the metrics of this step and report them; all ranks take part."""
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


def _distributed(network: PretrainingNetwork, device: torch.device) -> nn.Module:
    """The network in DDP if there is a process group; it averages the gradients over ranks."""
    if not collectives.is_distributed():
        return network
    with collectives.joined("starting to train a stage"):
        return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)
