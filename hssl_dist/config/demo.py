"""Config of `hssl demo`: the whole pipe on phantoms."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveInt

from hssl_dist.config.parts import JobConfig, Url


class DemoConfig(JobConfig):
    """Phantoms -> preprocess -> pretrain on two Ray workers -> register -> fine-tune -> report."""

    output: Url = Field(default="hssl/demo", validate_default=True)
    """Folder for everything the demo makes."""
    seed: NonNegativeInt = 0
    """Seed of the phantoms and the runs."""
    workers: PositiveInt = 2
    """Pretraining workers."""
