"""Configs of `hssl finetune` and `hssl promote`."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from hssl_dist import files
from hssl_dist.config.network import NetworkConfig
from hssl_dist.config.parts import (
    CacheConfig,
    Fraction,
    JobConfig,
    Name,
    Part,
    RayConfig,
    Runner,
    Size,
    SplitConfig,
    StoreConfig,
    TrackingConfig,
    Url,
)

SCRATCH = "scratch"


def _resolve_model(uri: str) -> str:
    return uri if uri == SCRATCH or uri.startswith(("models:/", "runs:/")) else files.resolve(uri)


ModelUri = Annotated[str, AfterValidator(_resolve_model)]


class LabelsConfig(Part):
    """How many of the training patients' labels are used."""

    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the training patients; a smaller share is always a subset of a larger one."""
    seed: int = 0
    """Seed of the order in which patients are taken."""


class SupervisedConfig(Part):
    """Supervised training."""

    steps: PositiveInt = 1000
    """Optimiser steps."""
    batch_size: PositiveInt = 2
    """Patches per step."""
    patch_size: Size = (16, 48, 48)
    """Size z y x of a patch in voxels."""
    foreground: Fraction = 0.5
    """Share of patches centred on an annotated structure."""
    learning_rate: PositiveFloat = 4e-3
    """Peak learning rate of the new parts."""
    encoder_rate: NonNegativeFloat = 1.0
    """Factor on the learning rate of an encoder taken from a model; 0 freezes it."""
    decoder_rate: NonNegativeFloat = 1.0
    """Factor on the learning rate of a decoder taken from a model; 0 freezes it."""
    weight_decay: NonNegativeFloat = 1e-4
    """Decoupled weight decay."""
    warmup_steps: NonNegativeInt = 20
    """Steps of linear warm-up before the cosine."""
    clip_norm: PositiveFloat = 5.0
    """Largest gradient norm."""
    validate_every: PositiveInt = 200
    """Steps between validations; the last step is always validated."""
    log_every_steps: PositiveInt = 10
    """Steps between logged metrics."""


class FinetuneConfig(JobConfig):
    """Fine-tune a pretrained network, or train one from scratch, on a dataset's labels."""

    name: Name = "finetune"
    """Name of the run."""
    seed: int = 0
    """Seed of new weights, samples and augmentation."""
    model: ModelUri = "models:/hssl-unet@latest"
    """`models:/name@alias`, `models:/name/version`, `runs:/id`, a checkpoint's path, or `scratch`."""
    parts: tuple[str, ...] = ("encoder", "decoder")
    """Parts taken from the model; the rest starts anew."""
    dataset: str
    """Dataset of the store."""
    labels: LabelsConfig = LabelsConfig()
    split: SplitConfig = SplitConfig()
    training: SupervisedConfig = SupervisedConfig()
    network: NetworkConfig = NetworkConfig()
    """Only for `scratch`; otherwise the model's own."""
    store: StoreConfig = StoreConfig()
    cache: CacheConfig = CacheConfig()
    runs: Url = Field(default="hssl/runs", validate_default=True)
    """Folder or URL for the run's files."""
    tracking: TrackingConfig = TrackingConfig()
    register_as: Name | None = None
    """Name in the model registry; `hssl-<dataset>` if not given."""
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
