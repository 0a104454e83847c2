"""Config parts that several jobs share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from hssl_dist import files
from hssl_dist.records import content_hash


def _resolve_tracking(uri: str) -> str:
    prefix = "sqlite:///"
    return prefix + files.resolve(uri.removeprefix(prefix)) if uri.startswith(prefix) else uri


Url = Annotated[str, AfterValidator(files.resolve)]
TrackingUri = Annotated[str, AfterValidator(_resolve_tracking)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Size = tuple[PositiveInt, PositiveInt, PositiveInt]


class Part(BaseModel):
    """A frozen, strict piece of configuration: unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class JobConfig(Part):
    """Base of the one root config each job has."""

    def hash(self, exclude: Mapping[str, Any] | set[str] | None = None) -> str:
        """SHA-256 of the resolved config, without the keys in `exclude`: those of the top level, or, in a
        mapping, deeper ones too, as pydantic's `model_dump` takes them.
        """
        dump: dict[str, Any] = self.model_dump(mode="json", exclude=exclude)
        return content_hash(dump)


class StoreConfig(Part):
    """Where the preprocessed volumes are."""

    url: Url = Field(default="hssl/store", validate_default=True)
    """Local path or fsspec URL, e.g. s3://bucket/prefix."""


def _check_folder(folder: str) -> str:
    if not folder.startswith(("/", "~", "$")):
        raise ValueError(
            f"{folder!r} depends on where a process runs; give an absolute path, or one that starts with ~ "
            "or with a variable of the environment"
        )
    return folder


class CacheConfig(Part):
    """Decoded volumes on each node's own disk, shared by all its processes; see docs/data.md."""

    folder: Annotated[str, AfterValidator(_check_folder)] | None = None
    """Folder on a local disk; `~` and `$NAME` are those of the node that opens it. `hssl` in $XDG_CACHE_HOME,
    or ~/.cache/hssl, if not given."""
    max_bytes: NonNegativeInt = 16 << 30
    """Bytes the folder may take; 0 turns the cache off."""
    chunk_bytes: NonNegativeInt = 256 << 20
    """Memory, in each process, for decoded chunks of volumes that are not in the cache."""


class TrackingConfig(Part):
    """MLflow: where runs are logged and models registered."""

    uri: TrackingUri = Field(default="sqlite:///hssl/mlflow.db", validate_default=True)
    """An MLflow tracking URI; artifacts of a SQLite URI go to a folder beside its file."""
    experiment: str = "hssl"
    """Experiment the runs belong to."""
    parent: str | None = None
    """Id of the run that the job's own is nested under, if any."""


class RayConfig(Part):
    """The Ray cluster to use."""

    address: str | None = None
    """Address of a running cluster; without one, the one this process runs in, or a local one is started."""
    num_cpus: PositiveInt | None = None
    """CPUs of a local cluster; all of the machine's if not given."""


class SplitConfig(Part):
    """Patients set aside, by shares, by folds or by a file; the same whatever the label fraction."""

    test: Fraction = 0.2
    """Share of the labelled patients kept for testing."""
    validation: Fraction = 0.1
    """Share of the labelled patients kept for validation."""
    seed: int = 0
    """Seed of the assignment."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Parts for cross-validation; without it, shares alone divide the patients."""
    fold: NonNegativeInt = 0
    """Fold to set aside, from 0; only with `folds`."""
    fold_part: Literal["test", "validation"] = "test"
    """`test`: all patients are folded, `split.test` is not used; `validation`: the patients that `split.test`
    leaves are folded, `split.validation` is not used."""
    file: Url | None = None
    """JSON with the patients of `train`, `validation` and `test`; nothing else of `split` is used then."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.folds is None and self.fold:
            raise ValueError(f"fold is {self.fold}, but folds is not given; say how many there are")
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(
                f"fold {self.fold} of {self.folds} does not exist; choose one from 0 to {self.folds - 1}"
            )
        if self.folds is not None and self.file is not None:
            raise ValueError("folds and file both divide the patients; leave one of them out")
        return self


Runner = Literal["ray", "inline"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
