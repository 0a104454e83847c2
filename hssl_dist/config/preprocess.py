"""Config of `hssl preprocess`: challenge datasets in, a store out."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from hssl_dist import files
from hssl_dist.config.parts import Fraction, JobConfig, Name, Part, RayConfig, Size, StoreConfig, Url
from hssl_dist.records import distinct


def _check_pattern(pattern: str) -> str:
    if re.compile(pattern).groups != 1:
        raise ValueError(f"the pattern {pattern!r} needs exactly one group: the patient's name")
    return pattern


PatientPattern = Annotated[str, AfterValidator(_check_pattern)]
ClassNames = Annotated[dict[PositiveInt, str], AfterValidator(distinct)]
Endpoint = Annotated[str, AfterValidator(files.check_endpoint)]


class DatasetConfig(Part):
    """One challenge dataset: where it is, how it is laid out, what it is called."""

    name: Name
    """Name of the dataset in the store."""
    layout: Literal["msd", "nnunet", "bids", "folder", "dicom"]
    """Medical Segmentation Decathlon, nnU-Net raw v2, BIDS, plain image and label folders, a DICOM tree."""
    source: str
    """Path below `source_root`, absolute path or fsspec URL, of a folder or a tar archive."""
    anonymous: bool = False
    """Read a public `s3://` source unsigned."""
    endpoint: Endpoint | None = None
    """Server of an `s3://` source, https://host[:port]; the environment's if not given."""
    task: Name | None = None
    """Task of the hierarchy; the dataset's name if not given."""
    group: Name
    """Group of tasks declared alike, e.g. heart-mr."""
    modality: Literal["auto", "ct", "mr"] = "auto"
    """Normalisation rule; `auto` takes it from the layout's own description."""
    patient_pattern: PatientPattern | None = None
    """Regular expression with one group that finds the patient in a case's id."""
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Target spacing z y x; the median of the dataset if not given (anisotropy-aware)."""
    classes: ClassNames = Field(default={})
    """Names of the label values, for layouts that do not state them."""
    images: str = "images"
    """Image folder of the `folder` layout."""
    labels: str = "labels"
    """Label folder of the `folder` layout."""
    derivatives: str | None = None
    """Folder below `derivatives` with the masks of the `bids` layout; the only one if not given."""

    @model_validator(mode="after")
    def _access_suits_the_source(self) -> Self:
        files.with_access(self.source, self.anonymous, self.endpoint)
        return self


class StorageConfig(Part):
    """How volumes are stored."""

    dtype: Literal["auto", "int16", "float16"] = "auto"
    """Stored type; `auto` is what measured best (docs/decisions.md)."""
    chunk: Size = (32, 32, 32)
    """Inner chunk z y x, the unit of decompression."""
    shard: Size = (256, 256, 256)
    """Shard z y x, the unit of writing: one object."""

    @model_validator(mode="after")
    def _whole_chunks(self) -> Self:
        if any(shard % chunk for shard, chunk in zip(self.shard, self.chunk, strict=True)):
            raise ValueError(
                f"shard {self.shard} is not a multiple of chunk {self.chunk}; choose one that is"
            )
        return self


class PreprocessConfig(JobConfig):
    """Turn challenge datasets into sharded OME-Zarr volumes."""

    store: StoreConfig = StoreConfig()
    source_root: Url = Field(default=".", validate_default=True)
    """Folder that relative `source` paths start from."""
    datasets: tuple[DatasetConfig, ...] = Field(min_length=1)
    """The datasets to preprocess."""
    storage: StorageConfig = StorageConfig()
    max_failure_rate: Fraction = 0.1
    """Share of a dataset's cases that may be quarantined before the job fails."""
    max_voxels: PositiveInt = 1 << 30
    """Largest volume accepted, in voxels of the header; larger ones are quarantined unread."""
    ray: RayConfig = RayConfig()

    @field_validator("datasets")
    @classmethod
    def _unique_names(cls, datasets: tuple[DatasetConfig, ...]) -> tuple[DatasetConfig, ...]:
        names = [dataset.name for dataset in datasets]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"dataset names must differ; {twice[0]!r} stands twice")
        return datasets
