"""Config of `hssl export`: a model in, a folder for another tool out."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import PositiveInt, model_validator

from hssl_dist.config.finetune import ModelUri
from hssl_dist.config.parts import JobConfig, Size, StoreConfig, TrackingConfig, Url

Target = Literal["nnunet", "monai", "safetensors"]


class ExportConfig(JobConfig):
    """Take a model to another tool: nnU-Net, MONAI, or plain weights."""

    model: ModelUri
    """`models:/name@alias`, `models:/name/version`, `runs:/id`, or a model folder's path or URL."""
    to: Target
    """`nnunet`: checkpoint and plans; `monai`: a bundle; `safetensors`: weights and a JSON card."""
    output: Url
    """Folder or URL to write; it must be empty, absent, or hold an earlier export and nothing else."""
    dataset: str | None = None
    """Dataset of the store whose spacing and normalisation are told; else the model's card's."""
    store: StoreConfig = StoreConfig()
    plans: Url | None = None
    """`nnunet`: plans that nnU-Net made for the dataset to fine-tune on; ours is added to their
    configurations."""
    patch_size: Size | None = None
    """Size z y x of a patch in voxels; that of `plans` or of the model's card if not given."""
    channels: PositiveInt | None = None
    """Input channels, if a pretrained network for one is to be spread over several; those of `dataset` or
    `plans`, else the model's own, if not given."""
    tracking: TrackingConfig = TrackingConfig()
    threads: PositiveInt | None = None
    """CPU threads; torch's choice if not given."""

    @model_validator(mode="after")
    def _plans_are_nnunets(self) -> Self:
        if self.plans is not None and self.to != "nnunet":
            raise ValueError(f"plans are nnU-Net's and say nothing to {self.to}; leave them out")
        if self.plans is not None and self.dataset is not None:
            raise ValueError("dataset and plans both say how images are prepared; give one of them")
        return self
