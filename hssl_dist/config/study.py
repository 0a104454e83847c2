"""Config of `hssl study`: arms x tasks x shares of the labels x label subsets x seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from hssl_dist import files
from hssl_dist.config.evaluate import IntervalConfig
from hssl_dist.config.finetune import SCRATCH, SupervisedConfig
from hssl_dist.config.loading import describe
from hssl_dist.config.network import NetworkConfig
from hssl_dist.config.parts import (
    CacheConfig,
    JobConfig,
    Part,
    RayConfig,
    Runner,
    Size,
    SplitConfig,
    StoreConfig,
    TrackingConfig,
    Url,
)
from hssl_dist.config.pretrain import CheckpointConfig, LearningConfig

Base = TypeVar("Base", bound=Part)
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=24)]
"""A name short enough that those of study, task and arm, together, are a run's."""
Share = Annotated[float, Field(gt=0.0, le=1.0)]
Changes = dict[str, JsonValue]
"""Some keys of another config part with new values; checked where they are laid over it."""

_TRANSFER_RATES = {"encoder_rate", "decoder_rate", "layer_decay", "freeze_steps"}


def over(base: Base, changes: Mapping[str, Any], place: str = "") -> Base:
    """`base` with nested `changes`, checked anew. Raises ValueError, in one line that starts with `place`."""
    try:
        return type(base).model_validate(_merged(base.model_dump(), changes))
    except ValidationError as error:
        raise ValueError(f"{place}{describe(error, type(base))}") from None


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, the changes winning."""
    merged = {**base, **changes}
    for key in base.keys() & changes.keys():
        if isinstance(base[key], Mapping) and isinstance(changes[key], Mapping):
            merged[key] = _merged(base[key], changes[key])
    return merged


# ------------------------------------------------------------------------------------------------------- arms


class ArmConfig(Part):
    """One way to come to a network's first weights."""

    name: Label
    """Name of the arm."""
    start: Literal["scratch", "pretrain"] = "pretrain"
    """`scratch`: new weights; `pretrain`: those of a pretraining by the keys below over the study's own."""
    domains: Literal["all", "own"] = "all"
    """Datasets to pretrain on: all of `pretrain.sampling.datasets`, or only the task's own."""
    own_weight: PositiveFloat = 1.0
    """Weight of the task's own images among those of all (`pretrain.sampling.task_weights`)."""
    stages: Literal["both", "encoder", "decoder"] = "both"
    """Stages to pretrain; one that is left out gives its steps to the other."""
    objective: Changes = Field(default={})
    """What it changes of `pretrain.objective`."""
    encoder: Changes = Field(default={})
    """What it changes of `pretrain.encoder`."""
    decoder: Changes = Field(default={})
    """What it changes of `pretrain.decoder`."""
    global_batch: PositiveInt | None = None
    """Regions per pretraining step; the study's if not given."""
    block_size: PositiveInt | None = Field(default=None, exclude_if=lambda size: size is None)
    """Consecutive regions of a step that come from one task; `pretrain.sampling.block_size` if not given."""
    # Left out of dumps unless given, so that the hash of a config from before this key stays what it was.
    parts: tuple[str, ...] = ("encoder", "decoder")
    """Parts taken from the pretrained network."""
    transfer: Changes = Field(default={})
    """What it changes of a task's `training`; more than `encoder_rate`, `decoder_rate`, `layer_decay` and
    `freeze_steps`, which concern only what is taken from a model, with `unmatched_budgets` alone."""
    network: Changes = Field(default={})
    """What it changes of a task's network, with `unmatched_budgets` alone."""

    @model_validator(mode="after")
    def _scratch_is_not_pretrained(self) -> Self:
        given = {key for key in type(self).model_fields if getattr(self, key) != _default(self, key)}
        if self.start == SCRATCH and (odd := sorted(given - {"name", "start", "transfer", "network"})):
            raise ValueError(
                f"arm {self.name!r} starts from scratch, where {odd[0]!r} means nothing; leave it out"
            )
        if self.domains == "own" and (odd := sorted(given & {"own_weight", "block_size"})):
            raise ValueError(f"arm {self.name!r} sees its own domain alone: leave out {odd[0]}")
        return self

    def learning(self, base: LearningConfig) -> LearningConfig:
        """What its pretraining learns: the study's `pretrain` section with the arm's changes.

        Raises ValueError, in one line, for changes that are wrong or do not go together.
        """
        encoder = over(base.encoder, self.encoder, "encoder.")
        decoder = over(base.decoder, self.decoder, "decoder.")
        total = encoder.steps + decoder.steps
        if self.stages != "both":
            encoder = encoder.model_copy(update={"steps": total if self.stages == "encoder" else 0})
            decoder = decoder.model_copy(update={"steps": total - encoder.steps})
        objective = over(base.objective, self.objective, "objective.")
        changed = {
            "objective": objective,
            "encoder": encoder,
            "decoder": decoder,
            "global_batch": self.global_batch or base.global_batch,
            "sampling": {"block_size": self.block_size or base.sampling.block_size},
        }
        return over(base, changed)

    def training(self, task: TaskConfig) -> SupervisedConfig:
        """How its cells of a task are fine-tuned. Raises ValueError, in one line."""
        return over(task.training, self.transfer, f"arm {self.name!r}: transfer.")


def _default(arm: ArmConfig, key: str) -> Any:
    return type(arm).model_fields[key].get_default()


_SINGLE, _MULTI = "hssl-single", "hssl-multi"
_NO_LEVELS = {"image_weight": 0.0, "task_weight": 0.0, "group_weight": 0.0}
_NO_DECODER_TERMS = {"dense_weight": 0.0, "restoration_weight": 0.0}
DEFAULT_ARMS: Mapping[str, Mapping[str, Any]] = {
    "scratch": {"start": "scratch"},
    "image": {
        "stages": "encoder",
        "objective": {**_NO_DECODER_TERMS, "task_weight": 0.0, "group_weight": 0.0},
        "parts": ("encoder",),
    },
    _SINGLE: {"domains": "own", "objective": {"restoration_weight": 0.0}},
    _MULTI: {"objective": {"restoration_weight": 0.0}},
    "restoration": {
        "stages": "decoder",
        "objective": {**_NO_LEVELS, "dense_weight": 0.0, "restoration_weight": 1.0},
        "decoder": {"encoder_rate": 1.0},
        "transfer": {"encoder_rate": 0.2},
    },
    "hssl-restoration": {"objective": {"restoration_weight": 1.0}},
}
"""The arms a config may just name: the comparison of docs/study.md."""


def _arm(value: Any) -> Any:
    """A default arm's name stands for it; `like` makes a new one of it, with the keys given beside it."""
    if isinstance(value, str):
        value = {"name": value, "like": value}
    if not isinstance(value, Mapping) or "like" not in value:
        return value
    like = value["like"]
    if like not in DEFAULT_ARMS:
        raise ValueError(
            f"no arm {like!r} is defined; write it out, or name one of {', '.join(DEFAULT_ARMS)}"
        )
    return _merged(DEFAULT_ARMS[like], {key: entry for key, entry in value.items() if key != "like"})


Arm = Annotated[ArmConfig, BeforeValidator(_arm)]


# ------------------------------------------------------------------------------------------------------ tasks


class TaskConfig(Part):
    """A dataset to fine-tune on, the same way for all arms."""

    dataset: Annotated[str, Field(min_length=1, max_length=32)]
    """Dataset of the store; also the task's name."""
    training: SupervisedConfig = SupervisedConfig()
    network: NetworkConfig | None = None
    """The task's network, and that of its pretrainings; `pretrain.network` if not given."""
    pretrain_patch_size: Size | None = None
    """Size z y x of a view in its pretrainings; `pretrain.sampling.patch_size` if not given."""

    def learning(self, base: LearningConfig, network: NetworkConfig) -> LearningConfig:
        """The study's `pretrain` section with a network and the task's views. Raises as `over` does."""
        changed: dict[str, Any] = {"network": network}
        if self.pretrain_patch_size is not None:
            changed["sampling"] = {"patch_size": self.pretrain_patch_size}
        return over(base, changed)


class OnlyConfig(Part):
    """A share of a study's cells; of those left out here there are results when some run has had them."""

    tasks: tuple[str, ...] = ()
    """Datasets of tasks; all if empty."""
    arms: tuple[str, ...] = ()
    """Arms by name; all if empty."""
    fractions: tuple[Share, ...] = ()
    """Shares of the labels; all if empty."""
    subsets: tuple[int, ...] = ()
    """Label subsets, from 0; all if empty. A share of 1 is in subset 0."""
    seeds: tuple[int, ...] = ()
    """Seeds; all if empty."""


class StudyConfig(JobConfig):
    """Compare ways of pretraining with training from scratch, by the Dice that few labels give."""

    name: Label = "study"
    """Name of the study; the same name again goes on with it."""
    tasks: tuple[TaskConfig, ...] = Field(min_length=1)
    """Datasets to fine-tune on."""
    arms: tuple[Arm, ...] = Field(default=tuple(DEFAULT_ARMS), validate_default=True, min_length=1)
    """Arms, by a default one's name, by changes to one (`like: hssl-multi`), or written out."""
    fractions: tuple[Share, ...] = (0.05, 0.1, 1.0)
    """Shares of the training patients' labels."""
    subsets: PositiveInt = 5
    """Label subsets of each share; a share of 1 has one."""
    seeds: tuple[int, ...] = Field(default=(0, 1), min_length=1)
    """Seeds, each of a pretraining; `cell_seeds` says what it is to the fine-tunings that start from it."""
    cell_seeds: Literal["own", "shared"] = "own"
    """`own`: each label subset of a seed is fine-tuned with new weights, samples and augmentation of its own,
    so that their chance averages out over subsets, too; `shared`: all with those of the seed."""
    split: SplitConfig = SplitConfig()
    """Of all tasks; pretraining never sees a scan of its test patients."""
    part: Literal["validation", "test"] = "validation"
    """Patients to score; `test` is for the one study that reports."""
    only: OnlyConfig = OnlyConfig()
    """What to run now. It changes nothing of what the study is, which is settled before the first look."""
    look_again: bool = False
    """Score test patients although a study of another config has done so; the report tells."""
    main_arm: Label | None = None
    """Arm whose gain over scratch, at the smallest share, is what the study claims; `hssl-multi`, or the last
    arm, if not given."""
    compare: tuple[tuple[Label, Label], ...] | None = None
    """Arms whose differences are tested besides those to scratch; the claim's with `hssl-single`, if both are
    there, if not given."""
    intervals: IntervalConfig = IntervalConfig()
    """Over label subsets, seeds and patients at once."""
    pretrain: LearningConfig = LearningConfig()
    """What pretrainings have in common."""
    pretrained_by: Label | None = None
    """Another study whose pretrainings, where they are the same to the last setting, are this one's, too."""
    unmatched_budgets: bool = False
    """Allow arms that see more samples than others, or are fine-tuned otherwise; the report tells."""
    overlap: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Overlap of neighbouring windows when a cell is scored."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the state of a fine-tuning is saved; that of a pretraining by `pretrain.checkpoint`."""
    store: StoreConfig = StoreConfig()
    cache: CacheConfig = CacheConfig()
    runs: Url = Field(default="hssl/runs", validate_default=True)
    """Folder or URL for the files of pretrainings and cells, and for who has seen which test patients."""
    output: Url = Field(default="hssl/studies", validate_default=True)
    """Folder or URL for results; the study's are in `<output>/<name>`."""
    tracking: TrackingConfig = TrackingConfig()
    runner: Runner = "inline"
    """`inline`: this process, one after the other; `ray`: tasks on a Ray cluster, with its GPUs."""
    ray: RayConfig = RayConfig()
    threads: PositiveInt = 1
    """CPU threads of each pretraining and each cell."""

    @property
    def folder(self) -> str:
        """Where the study's results are."""
        return files.join(self.output, self.name)

    @property
    def results(self) -> str:
        """Where those on the patients of `part` are: cells, summary, tables and report."""
        return files.join(self.folder, self.part)

    @property
    def claim(self) -> str:
        """The arm of the primary comparison."""
        names = [arm.name for arm in self.arms]
        return self.main_arm or (_MULTI if _MULTI in names else names[-1])

    @property
    def contrasts(self) -> tuple[tuple[str, str], ...]:
        """Pairs of arms whose differences are tested besides those to scratch."""
        if self.compare is not None:
            return self.compare
        there = any(arm.name == _SINGLE for arm in self.arms) and self.claim != _SINGLE
        return ((self.claim, _SINGLE),) if there else ()

    @model_validator(mode="after")
    def _sound(self) -> Self:
        lists: dict[str, list[Any]] = {
            "tasks": [task.dataset for task in self.tasks],
            "arms": [arm.name for arm in self.arms],
            "fractions": list(self.fractions),
            "seeds": list(self.seeds),
        }
        for key, values in lists.items():
            if twice := [value for value in values if values.count(value) > 1]:
                raise ValueError(f"{key} must differ; {twice[0]!r} stands twice")
        if not any(arm.name == SCRATCH and arm.start == SCRATCH for arm in self.arms):
            raise ValueError("there is no arm called scratch that starts so; all others are compared with it")
        if self.pretrain.sampling.exclude_test is not None:
            raise ValueError(
                "pretrain.sampling.exclude_test is the study's split, always; set `split` instead"
            )
        asked = (self.claim, *(name for pair in self.contrasts for name in pair))
        if unknown := [name for name in asked if name not in lists["arms"]]:
            raise ValueError(
                f"main_arm or compare names {unknown[0]!r}; the arms are {', '.join(lists['arms'])}"
            )
        for key, known in (lists | {"subsets": list(range(self.subsets))}).items():
            if unknown := [value for value in getattr(self.only, key) if value not in known]:
                raise ValueError(f"only.{key} has {unknown[0]!r}; {key} are {', '.join(map(str, known))}")
        if set(self.only.fractions or self.fractions) == {1.0} and 0 not in (self.only.subsets or (0,)):
            raise ValueError("only asks for no cell: all labels (a share of 1) are subset 0")
        for task in self.tasks:
            self._check_patches(task)
        samples = {
            f"arm {arm.name!r} for task {task.dataset!r}": self.learning(arm, task).samples
            for task in self.tasks
            for arm in self.arms
            if arm.start == "pretrain"
        }
        if not self.unmatched_budgets:
            self._check_budgets(samples)
        return self

    def network(self, arm: ArmConfig, task: TaskConfig) -> NetworkConfig:
        """The network of an arm's cells and pretrainings for a task. Raises ValueError, in one line."""
        return over(task.network or self.pretrain.network, arm.network, f"arm {arm.name!r}: network.")

    def learning(self, arm: ArmConfig, task: TaskConfig) -> LearningConfig:
        """What the arm's pretraining for a task learns. Raises ValueError, in one line."""
        try:
            return arm.learning(task.learning(self.pretrain, self.network(arm, task)))
        except ValueError as error:
            raise ValueError(f"arm {arm.name!r} for task {task.dataset!r}: {error}") from None

    def _check_patches(self, task: TaskConfig) -> None:
        for arm in self.arms:
            size = arm.training(task).patch_size
            if misfit := self.network(arm, task).misfit(size, "training.patch_size"):
                raise ValueError(f"task {task.dataset!r}: {misfit}; choose one that is")

    def _check_budgets(self, samples: Mapping[str, int]) -> None:
        """Whether all pretrainings, by name, see as many samples, and arms are fine-tuned alike."""
        first = next(iter(samples), "")
        for name, count in samples.items():
            if count != samples[first]:
                raise ValueError(
                    f"{name} pretrains on {count} samples, {first} on {samples[first]}: steps times "
                    "global_batch must agree, or set unmatched_budgets"
                )
        for arm in self.arms:
            own = [f"transfer.{key}" for key in sorted(arm.transfer.keys() - _TRANSFER_RATES)]
            own += [f"network.{key}" for key in sorted(arm.network)]
            if own:
                raise ValueError(
                    f"arm {arm.name!r} has a {own[0]} of its own; all arms of a task are fine-tuned alike: "
                    "leave it out, or set unmatched_budgets"
                )
