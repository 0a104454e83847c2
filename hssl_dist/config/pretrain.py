"""Config of `hssl pretrain`: a store in, a registered checkpoint out."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainSerializer,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from hssl_dist.config.acceleration import AccelerationConfig
from hssl_dist.config.network import NetworkConfig
from hssl_dist.config.parts import (
    CacheConfig,
    Fraction,
    JobConfig,
    Name,
    Part,
    Precision,
    RayConfig,
    Runner,
    Size,
    SplitConfig,
    StoreConfig,
    TrackingConfig,
    Url,
)


def _worker_range(value: object) -> tuple[int, int]:
    """(fewest, most) of a number or a range, from a file or a flag."""
    entries: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    try:
        numbers = [int(entry) for entry in entries if not isinstance(entry, float)]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) not in (1, 2) or len(numbers) < len(entries) or not 0 < numbers[0] <= numbers[-1]:
        found = entries[0] if len(entries) == 1 else value
        raise ValueError(f"give a number of workers, such as 2, or a range, such as [1, 4]; not {found!r}")
    return numbers[0], numbers[-1]


def _shortest(value: tuple[int, int]) -> int | tuple[int, int]:
    return value[0] if value[0] == value[1] else value


WorkerRange = Annotated[tuple[int, int], BeforeValidator(_worker_range), PlainSerializer(_shortest)]
"""The fewest and the most workers; written as a number if they are the same."""


class SamplingConfig(Part):
    """Which regions a step sees."""

    datasets: tuple[str, ...] = ()
    """Datasets of the store to draw from; all if empty."""
    patch_size: Size = (16, 48, 48)
    """Size z y x of a view in voxels."""
    margin: NonNegativeFloat = 0.5
    """A region is larger than a view by this share on each axis, so that two views can lie apart in it."""
    task_exponent: Fraction = 0.5
    """Tasks are drawn with p ~ weight * (number of cases) ** exponent: 0 balances tasks, 1 balances cases."""
    task_weights: dict[str, PositiveFloat] = Field(default={})
    """Weights of tasks by name, 1 where not given, such as `{hippocampus: 4}`."""
    block_size: PositiveInt = 16
    """Consecutive samples of a global batch that come from one task, for hard negatives."""
    foreground: Fraction = 0.5
    """Share of regions around tissue; labels are not looked at."""
    exclude_test: SplitConfig | None = None
    """Leave the labelled test patients of this split out of pretraining, and whatever case shows one of their
    scans; without it every image is used."""
    exclude_test_of: tuple[str, ...] | None = None
    """Datasets whose test patients those are, besides the ones to draw from; if not given, all of the store,
    or all that `exclude_test.file` names."""
    prefetch_batches: PositiveInt = 2
    """Batches read ahead, if `prefetch_bytes` has room for them."""
    prefetch_bytes: PositiveInt = 2 << 30
    """Memory, in each process, for batches read ahead; one is, whatever its size."""

    @model_validator(mode="after")
    def _excluding(self) -> Self:
        if self.exclude_test is None and self.exclude_test_of is not None:
            raise ValueError(
                f"exclude_test_of is {self.exclude_test_of}, but there is no exclude_test to say who their "
                "test patients are; give both, or neither"
            )
        return self


class ViewConfig(Part):
    """How two views of a region differ."""

    rotation_rad: NonNegativeFloat = 0.3
    """Largest rotation about the z axis; a quarter of it about the others."""
    scale: NonNegativeFloat = 0.2
    """Largest relative change of size."""
    flip: Fraction = 0.5
    """Probability of a flip, for each axis."""
    noise: NonNegativeFloat = 0.15
    """Largest standard deviation of added noise."""
    blur: Fraction = 0.2
    """Probability of Gaussian blur."""
    low_resolution: Fraction = 0.2
    """Probability of simulated low resolution."""
    contrast: NonNegativeFloat = 0.35
    """Largest relative change of contrast."""
    brightness: NonNegativeFloat = 0.25
    """Largest shift of brightness, in standard deviations."""
    gamma: NonNegativeFloat = 0.4
    """Largest absolute logarithm of gamma."""


class ObjectiveConfig(Part):
    """The terms of the loss and their weights."""

    temperature: PositiveFloat = 0.1
    """Temperature of the image level."""
    learn_temperature: bool = False
    """Whether the image level's temperature is a parameter."""
    image_weight: NonNegativeFloat = 1.0
    """Weight of the image level."""
    task_weight: NonNegativeFloat = 0.5
    """Weight of the task level."""
    group_weight: NonNegativeFloat = 0.5
    """Weight of the group level."""
    projection_size: PositiveInt = 128
    """Length of an embedding."""
    depths: tuple[NonNegativeInt, ...] = (0,)
    """Encoder stages with heads of these levels, counted from the deepest, 0; their losses are averaged."""
    class_balance: bool = False
    """Whether each task (and each group) of a global batch weighs alike, however many samples it has."""
    exclude_false_negatives: Literal["none", "case", "patient"] = "none"
    """Samples of one case, or of one patient, are no negatives of each other."""
    dense_weight: NonNegativeFloat = 1.0
    """Weight of dense correspondence, in the decoder stage."""
    dense_temperature: PositiveFloat = 0.1
    """Temperature of dense correspondence."""
    dense_points: PositiveInt = 128
    """Matched voxels per pair of views."""
    dense_distance: NonNegativeFloat = 4.0
    """Negatives of a voxel lie at least so many voxels away."""
    dense_across_batch: bool = False
    """Whether voxels of the global batch's other regions are negatives too."""
    restoration_weight: NonNegativeFloat = 1.0
    """Weight of restoring a corrupted view, in the decoder stage."""
    mask_fraction: Fraction = 0.4
    """Share of a view that is masked for restoration."""
    restoration_noise: NonNegativeFloat = 0.1
    """Noise added to the voxels that are not masked, in standard deviations of the view."""
    restored_voxels: Literal["masked", "all"] = "masked"
    """`masked`: only those count; `all`: the noisy ones too, so that `mask_fraction` 0 is pure denoising."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.depths or len(set(self.depths)) < len(self.depths):
            raise ValueError(f"depths are {self.depths}; give one or more, each once, such as (0,)")
        if self.restoration_weight and not self.mask_fraction:
            if self.restored_voxels == "masked":
                raise ValueError(
                    "mask_fraction is 0 and restored_voxels is masked: there is nothing to restore; "
                    "mask a share, or restore all voxels, or set restoration_weight to 0"
                )
            if not self.restoration_noise:
                raise ValueError(
                    "mask_fraction and restoration_noise are both 0: there is nothing to restore; "
                    "raise one, or set restoration_weight to 0"
                )
        return self


class StageConfig(Part):
    """One of the two stages: the encoder's, then the decoder's."""

    steps: NonNegativeInt
    """Optimiser steps; 0 leaves the stage out."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate."""
    encoder_rate: NonNegativeFloat = 1.0
    """Factor on the encoder's learning rate; 0 freezes it."""
    weight_decay: NonNegativeFloat = 1e-4
    """Decoupled weight decay."""
    warmup_steps: NonNegativeInt = 30
    """Steps of linear warm-up before the cosine."""
    clip_norm: PositiveFloat = 5.0
    """Largest gradient norm."""


class CheckpointConfig(Part):
    """When the state is saved, how much of it is kept, and what happens where it cannot be saved."""

    every_steps: PositiveInt = 100
    """Steps between checkpoints."""
    keep_last: PositiveInt = 2
    """Newest checkpoints kept, besides the best."""
    max_failures: PositiveInt = 3
    """Checkpoints in a row that cannot be saved before the run ends with an error; fewer are warnings."""
    timeout_s: PositiveFloat = 300.0
    """Longest time in seconds that training waits for a checkpoint to be written; then it has failed. In
    pretraining at most half of `collective_timeout_s`."""


class LearningConfig(Part):
    """What is learnt, from which regions and for how long: all of a run but where it runs."""

    global_batch: PositiveInt = 32
    """Regions per step over all workers."""
    micro_batch: PositiveInt | None = None
    """Regions a worker puts through the network at once; all of its share if not given. Only memory and time
    depend on it: negatives and gradients are those of the global batch."""
    precision: Precision = "float32"
    """Of encoder and decoder; weights, heads, losses and optimiser stay in float32. `auto`: bfloat16 on
    hardware that is faster with it, else float16 on a GPU, else float32. In float16 the loss is scaled."""
    acceleration: AccelerationConfig = AccelerationConfig()
    log_every_steps: PositiveInt = 10
    """Steps between logged metrics."""
    sampling: SamplingConfig = SamplingConfig()
    views: ViewConfig = ViewConfig()
    network: NetworkConfig = NetworkConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    encoder: StageConfig = StageConfig(steps=1000)
    decoder: StageConfig = StageConfig(steps=500, learning_rate=1.5e-3, encoder_rate=0.3)
    checkpoint: CheckpointConfig = CheckpointConfig()

    @property
    def samples(self) -> int:
        """Regions seen over both stages, each as often as it is drawn."""
        return (self.encoder.steps + self.decoder.steps) * self.global_batch

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self._check_batch()
        deepest = len(self.network.widths) - 1
        if max(self.objective.depths) > deepest:
            raise ValueError(
                f"objective.depths {self.objective.depths} go beyond the network's {deepest + 1} stages; "
                f"use depths from 0 to {deepest}"
            )
        if misfit := self.network.misfit(self.sampling.patch_size, "sampling.patch_size"):
            raise ValueError(f"{misfit}; choose one that is")
        if self.encoder.steps + self.decoder.steps == 0:
            raise ValueError("encoder.steps and decoder.steps are both 0: there is nothing to train")
        terms = {"encoder": ("image", "task", "group"), "decoder": ("dense", "restoration")}
        for stage, names in terms.items():
            weights = [getattr(self.objective, f"{name}_weight") for name in names]
            if getattr(self, stage).steps and not any(weights):
                keys = ", ".join(f"objective.{name}_weight" for name in names)
                raise ValueError(f"{stage}.steps is not 0, but {keys} are: leave the stage or a term in")
        return self

    def _check_batch(self) -> None:
        if self.global_batch < 2 and self.encoder.steps and self.objective.image_weight:
            raise ValueError(
                "global_batch 1 leaves the image level no negatives; "
                "use at least 2, or set objective.image_weight to 0"
            )
        if self.micro_batch is not None and self.micro_batch > self.global_batch:
            raise ValueError(
                f"micro_batch {self.micro_batch} is more than global_batch {self.global_batch}; "
                "leave it out to put each worker's share through the network at once"
            )


class PretrainConfig(JobConfig, LearningConfig):
    """Pretrain a network on a store, without labels, and register it."""

    name: Name = "pretrain"
    """Name of the run; the same name again resumes it."""
    seed: int = 0
    """Seed of weights, samples and augmentation."""
    store: StoreConfig = StoreConfig()
    cache: CacheConfig = CacheConfig()
    runs: Url = Field(default="hssl/runs", validate_default=True)
    """Folder or URL for checkpoints; the run's are in `<runs>/<name>`."""
    tracking: TrackingConfig = TrackingConfig()
    register_as: Name = "hssl-unet"
    """Name in the model registry; the new version gets the alias `latest`."""
    runner: Runner = "ray"
    """`ray`: workers of a Ray cluster; `inline`: this process, or the ranks torchrun starts."""
    ray: RayConfig = RayConfig()
    workers: WorkerRange = (1, 1)
    """Ray workers, one GPU each where there are GPUs: a number, or a range such as `[1, 4]` of which the run
    takes as many as the cluster has room for, whenever that changes."""
    resize_every_s: PositiveFloat = 300.0
    """Seconds between looks for room for more workers, if `workers` is a range; a change starts them anew,
    from the newest checkpoint."""
    threads_per_worker: PositiveInt = 1
    """CPU threads of a worker."""
    max_failures: NonNegativeInt = 3
    """Times a Ray run starts its workers again from the newest checkpoint after one of them failed."""
    collective_timeout_s: PositiveFloat = 600.0
    """Seconds after which a rank that waits for another one gives up, and names it."""

    @model_validator(mode="after")
    def _a_region_each(self) -> Self:
        most = self.workers[1]
        if self.global_batch < most:
            raise ValueError(
                f"global_batch {self.global_batch} gives some of {most} workers no region; "
                f"use at least {most}, or fewer workers"
            )
        return self
