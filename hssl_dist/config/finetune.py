"""Configs of `hssl finetune` and `hssl promote`."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from hssl_dist import files
from hssl_dist.config.acceleration import StepAccelerationConfig
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
from hssl_dist.config.pretrain import CheckpointConfig, ViewConfig
from hssl_dist.records import KeepLargest

SCRATCH = "scratch"


def _resolve_model(uri: str) -> str:
    return uri if uri == SCRATCH or uri.startswith(("models:/", "runs:/")) else files.resolve(uri)


def _check_alias(alias: str) -> str:
    if alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias):
        raise ValueError(f"{alias!r} is the registry's own name for a version; choose another, e.g. champion")
    return alias


def _check_part(part: str) -> str:
    if part not in ("encoder", "decoder"):
        raise ValueError(f"{part!r} is not taken from models; encoder and decoder are, heads are always new")
    return part


ModelUri = Annotated[str, AfterValidator(_resolve_model)]
Alias = Annotated[Name, AfterValidator(_check_alias)]
ModelParts = Annotated[tuple[Annotated[str, AfterValidator(_check_part)], ...], Field(min_length=1)]


class LabelsConfig(Part):
    """How many of the training patients' labels are used."""

    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the training patients; a smaller share is always a subset of a larger one."""
    seed: int = 0
    """Seed of the order in which patients are taken."""


class AugmentationConfig(ViewConfig):
    """How far a labelled patch may be changed."""

    probability: Fraction = 0.4
    """Probability of rotation, scaling, contrast, brightness, gamma and noise, each."""
    rotation_rad: NonNegativeFloat = 0.5
    """Largest rotation about the z axis; a quarter of it about the others."""
    flip_axes: tuple[bool, bool, bool] = (False, False, False)
    """Axes z y x that may be flipped, each with probability `flip`. Stored volumes have one orientation, and
    few organs look like their mirror image: with few labels, flips cost points (docs/decisions.md)."""
    scale: NonNegativeFloat = 0.35
    """Largest relative change of size."""
    noise: NonNegativeFloat = 0.3
    """Largest standard deviation of added noise."""
    blur: Fraction = 0.15
    """Probability of Gaussian blur."""
    contrast: NonNegativeFloat = 0.3
    """Largest relative change of contrast."""
    brightness: NonNegativeFloat = 0.3
    """Largest shift of brightness, in standard deviations."""


KeepLargestWanted = Literal["auto"] | KeepLargest
"""`auto`: whichever of the ways validates best."""


class SupervisedConfig(Part):
    """Supervised training."""

    steps: PositiveInt = 1000
    """Optimiser steps; the learning rate falls to 0 over them."""
    batch_size: PositiveInt = 2
    """Patches per step."""
    patch_size: Size = (16, 48, 48)
    """Size z y x of a patch in voxels."""
    foreground: Fraction = 0.5
    """Share of patches centred on an annotated structure."""
    augmentation: AugmentationConfig = AugmentationConfig()
    deep_supervision: bool = True
    """Whether the coarser decoder stages have a loss too, of weight 1/2, 1/4, ..."""
    learning_rate: PositiveFloat = 4e-3
    """Peak learning rate of the new parts."""
    encoder_rate: NonNegativeFloat = 1.0
    """Factor on the learning rate of an encoder taken from a model; 0 freezes it."""
    decoder_rate: NonNegativeFloat = 1.0
    """Factor on the learning rate of a decoder taken from a model; 0 freezes it."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Further factor for each encoder stage, taken from a model, that a stage lies before the deepest."""
    freeze_steps: NonNegativeInt = 0
    """First steps, in which only the new parts are trained, not those taken from a model."""
    weight_decay: NonNegativeFloat = 1e-4
    """Decoupled weight decay."""
    warmup_steps: NonNegativeInt = 20
    """Steps of linear warm-up before the cosine."""
    clip_norm: PositiveFloat = 5.0
    """Largest gradient norm."""
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Validate and keep an exponential moving average of the weights, of this decay; off if not given."""
    precision: Precision = "float32"
    """Of the network's forward pass; weights, loss and optimiser stay in float32. `auto`: bfloat16 on
    hardware that is faster with it, else float16 on a GPU, else float32. In float16 the loss is scaled."""
    acceleration: StepAccelerationConfig = StepAccelerationConfig()
    validate_every: PositiveInt = 200
    """Steps between validations; the last step is always validated."""
    validation_overlap: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Overlap of neighbouring windows in a validation."""
    keep_largest: KeepLargestWanted = "auto"
    """Of what only the largest connected component of a prediction is kept: of the foreground, all classes
    together, of each class, or never; `auto`: what validates best with the weights that did."""
    patience: PositiveInt | None = None
    """Validations without a better Dice after which training stops; off if not given."""
    log_every_steps: PositiveInt = 10
    """Steps between logged metrics."""


class FinetuneConfig(JobConfig):
    """Fine-tune a pretrained network, or train one from scratch, on a dataset's labels."""

    name: Name = "finetune"
    """Name of the run; the same name again resumes it, or gives its result if it is done."""
    seed: int = 0
    """Seed of new weights, samples and augmentation."""
    model: ModelUri = "models:/hssl-unet@latest"
    """`models:/name@alias`, `models:/name/version`, `runs:/id`, a checkpoint's path, or `scratch`."""
    parts: ModelParts = ("encoder", "decoder")
    """Parts taken from the model, at least one; the heads always start anew."""
    dataset: str
    """Dataset of the store."""
    labels: LabelsConfig = LabelsConfig()
    split: SplitConfig = SplitConfig()
    training: SupervisedConfig = SupervisedConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    network: NetworkConfig = NetworkConfig()
    """Only for `scratch`; otherwise the model's own."""
    store: StoreConfig = StoreConfig()
    cache: CacheConfig = CacheConfig()
    runs: Url = Field(default="hssl/runs", validate_default=True)
    """Folder or URL for the run's files."""
    tracking: TrackingConfig = TrackingConfig()
    register_as: Name | None = None
    """Name in the model registry; `hssl-<dataset>` if not given."""
    alias: tuple[Alias, ...] = ()
    """Aliases that the registered version gets, taking them from the versions that had them."""
    runner: Runner = "inline"
    """`inline`: this process; `ray`: a task on a Ray cluster, with one GPU where there are GPUs."""
    ray: RayConfig = RayConfig()
    threads: PositiveInt | None = None
    """CPU threads; torch's choice if not given."""


class PromoteConfig(JobConfig):
    """Give a registered version an alias."""

    model: Name = "hssl-unet"
    """Name in the model registry."""
    version: PositiveInt | None = None
    """Version to promote; the one with the alias `latest` if not given."""
    alias: Name = "champion"
    """Alias to move."""
    tracking: TrackingConfig = TrackingConfig()
