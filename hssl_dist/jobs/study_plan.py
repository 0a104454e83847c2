"""What a study does: its pretrainings, its cells, and the complete config of each, by pure functions.

A cell is one fine-tuning and its scores: task x share of the labels x label subset x seed x arm, in the order
in which they are run. Arms come last, so that a study that is stopped early has whole pairs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hssl_dist import files
from hssl_dist.config.evaluate import EvaluateConfig, IntervalConfig
from hssl_dist.config.finetune import SCRATCH, FinetuneConfig, LabelsConfig
from hssl_dist.config.pretrain import PretrainConfig
from hssl_dist.config.study import ArmConfig, OnlyConfig, StudyConfig, TaskConfig
from hssl_dist.records import Manifest, content_hash
from hssl_dist.training.trajectory import trajectory

_HASH_LENGTH = 8
_SEEDS_APART = 1 << 20  # between the fine-tuning seeds of two label subsets: more than a study has seeds
_FEWEST_RESAMPLES = 100  # a cell's own intervals go into no table: those of the study are over all cells


@dataclass(frozen=True, slots=True)
class Pretraining:
    """A pretraining run, and the arms and tasks whose cells of its seed start from it."""

    config: PretrainConfig
    arms: tuple[str, ...]
    tasks: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.config.name


@dataclass(frozen=True, slots=True)
class Cell:
    """One fine-tuning; `pretraining` names the run it starts from, None from scratch."""

    task: TaskConfig
    fraction: float
    subset: int
    seed: int
    arm: ArmConfig
    pretraining: str | None

    @property
    def id(self) -> str:
        """Such as `acdc-f0.05-s3-r1-hssl-multi`: task, share, subset, seed, arm."""
        return f"{self.task.dataset}-f{self.fraction:g}-s{self.subset}-r{self.seed}-{self.arm.name}"


@dataclass(frozen=True, slots=True)
class Plan:
    """All of a study, in the order in which it is run."""

    pretrainings: tuple[Pretraining, ...]
    cells: tuple[Cell, ...]

    def asked(self, config: StudyConfig) -> Plan:
        """The part of it that `config.only` asks for."""
        cells = tuple(cell for cell in self.cells if _is_asked(config.only, cell))
        started = {cell.pretraining for cell in cells}
        return Plan(tuple(item for item in self.pretrainings if item.name in started), cells)

    @classmethod
    def of(cls, config: StudyConfig) -> Plan:
        """The plan of a config: each pretraining once, whatever number of cells starts from it."""
        found: dict[str, Pretraining] = {}
        cells = []
        for subset in range(config.subsets):
            for seed in config.seeds:
                for fraction in config.fractions:
                    if fraction == 1.0 and subset > 0:
                        continue  # all subsets of all labels are the same
                    for task in config.tasks:
                        for arm in config.arms:
                            name = _join(found, pretrain_config(config, arm, task, seed), arm, task)
                            cells.append(Cell(task, fraction, subset, seed, arm, name))
        return cls(tuple(found.values()), tuple(cells))


def _is_asked(only: OnlyConfig, cell: Cell) -> bool:
    wanted = (
        (only.tasks, cell.task.dataset),
        (only.arms, cell.arm.name),
        (only.fractions, cell.fraction),
        (only.subsets, cell.subset),
        (only.seeds, cell.seed),
    )
    return all(not values or value in values for values, value in wanted)


def _join(
    found: dict[str, Pretraining], config: PretrainConfig | None, arm: ArmConfig, task: TaskConfig
) -> str | None:
    """The name of the pretraining with this content, which now also serves this arm and task."""
    if config is None:
        return None
    key = content_hash(trajectory(config, {}))
    known = found.get(key) or Pretraining(config, (), ())
    found[key] = replace(
        known,
        arms=tuple(dict.fromkeys((*known.arms, arm.name))),
        tasks=tuple(dict.fromkeys((*known.tasks, task.dataset))),
    )
    return known.name


# ---------------------------------------------------------------------------------------------------- configs


def pretrain_config(
    config: StudyConfig, arm: ArmConfig, task: TaskConfig, seed: int
) -> PretrainConfig | None:
    """The pretraining that an arm's cells of a task and seed start from; None from scratch.

    Its name begins with the study whose it is and ends in a hash of all that determines its weights.
    """
    if arm.start == SCRATCH:
        return None
    learning = config.learning(arm, task)
    sampling = learning.sampling
    datasets, weights = sampling.datasets, sampling.task_weights
    if arm.domains == "own":
        datasets, weights = (task.dataset,), {}
    elif arm.own_weight != 1.0:
        weights = {**weights, task.dataset: arm.own_weight}
    owner = config.pretrained_by or config.name
    changed = {
        "datasets": datasets,
        "task_weights": weights,
        "exclude_test": config.split,
        "exclude_test_of": _not_drawn(config, arm, datasets),
    }
    complete = PretrainConfig(
        **{key: getattr(learning, key) for key in type(learning).model_fields}
        | {"sampling": sampling.model_copy(update=changed)},
        seed=seed,
        store=config.store,
        cache=config.cache,
        runs=config.runs,
        tracking=config.tracking,
        register_as=f"{owner}-{arm.name}",
        runner="inline",
        threads_per_worker=config.threads,
    )
    end = content_hash(trajectory(complete, {}))[:_HASH_LENGTH]
    return complete.model_copy(update={"name": f"{owner}-r{seed}-{arm.name}-{end}"})


def _not_drawn(config: StudyConfig, arm: ArmConfig, datasets: Collection[str]) -> tuple[str, ...]:
    """The tasks whose cells start from an arm's pretraining though it does not draw from their datasets."""
    if arm.domains == "own" or not datasets:
        return ()
    return tuple(sorted({task.dataset for task in config.tasks} - set(datasets)))


def run_name(config: StudyConfig, cell: Cell) -> str:
    """The name of a cell's fine-tuning run."""
    return f"{config.name}-{cell.id}"


def finetune_config(config: StudyConfig, cell: Cell, model: str) -> FinetuneConfig:
    """A cell's fine-tuning, from `model` or `scratch`; cells that differ by arm alone share its seed."""
    return FinetuneConfig(
        name=run_name(config, cell),
        seed=cell.seed + (cell.subset * _SEEDS_APART if config.cell_seeds == "own" else 0),
        model=model,
        parts=cell.arm.parts,
        dataset=cell.task.dataset,
        labels=LabelsConfig(fraction=cell.fraction, seed=cell.subset),
        split=config.split,
        training=cell.arm.training(cell.task),
        checkpoint=config.checkpoint,
        network=config.network(cell.arm, cell.task),
        store=config.store,
        cache=config.cache,
        runs=config.runs,
        tracking=config.tracking,
        register_as=f"{config.name}-{cell.task.dataset}",
        threads=config.threads,
    )


def evaluate_config(config: StudyConfig, cell: Cell, model: str) -> EvaluateConfig:
    """The scores of a cell's model on the patients of `config.part`."""
    return EvaluateConfig(
        model=model,
        part=config.part,
        store=config.store,
        output=files.join(config.results, "scores", cell.id),
        overwrite=True,  # the folder is the cell's own, its model may have been registered anew
        runs=None,  # the study notes its own look
        tracking=config.tracking,
        overlap=config.overlap,
        intervals=IntervalConfig(resamples=_FEWEST_RESAMPLES),
        threads=config.threads,
    )


# --------------------------------------------------------------------------------------------------- identity


def identity(config: StudyConfig, plan: Plan, manifests: Mapping[str, Manifest]) -> dict[str, Any]:
    """What determines the cells of each task and arm, whatever their share, subset and seed. Plain JSON.

    A study may be given more of everything, but what it has done must not change under its name.
    """
    return {
        f"{cell.task.dataset}/{cell.arm.name}": _determining(config, cell, manifests)
        for cell in plan.cells
        if cell.seed == config.seeds[0]
    }


def _determining(config: StudyConfig, cell: Cell, manifests: Mapping[str, Manifest]) -> dict[str, Any]:
    tuning = finetune_config(config, cell, SCRATCH).model_dump(
        mode="json", include={"parts", "split", "training", "network"}
    )
    del tuning["training"]["log_every_steps"], tuning["training"]["acceleration"]
    if config.split.file is not None:
        tuning["split"]["file"] = files.sha256(config.split.file)[0]
    pretraining = pretrain_config(config, cell.arm, cell.task, 0)
    seen = None
    if pretraining is not None:
        sampling = pretraining.sampling
        names = (*sampling.datasets, *(sampling.exclude_test_of or ())) or tuple(manifests)
        seen = trajectory(pretraining, {name: manifests[name] for name in names})
    own = {"cell_seeds": "own"} if config.cell_seeds == "own" else {}  # not there in studies of before
    return own | {
        "finetune": tuning,
        "overlap": config.overlap,
        "manifest": manifests[cell.task.dataset].sha256,
        "pretrain": seen,
    }
