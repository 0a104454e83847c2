"""Frozen records that travel between the parts.

Records that are written to a store are pydantic models (strict JSON in, canonical JSON out); records that
carry arrays are dataclasses. Axes are `z y x` throughout, except `Geometry.original_*`, which describes the
source file in its own `x y z` order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float32, Shaped, UInt8

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]
SplitName = Literal["train", "test"]
KeepLargest = Literal["never", "foreground", "class"]
"""Of what only the largest component of a predicted label stays: all classes together, each, or none."""

TISSUE = "any"
"""Name of all tissue where the others are class values."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text, so it can be hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_hash(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


Names = TypeVar("Names", bound=Mapping[int, str])


def distinct(classes: Names) -> Names:
    """Names of label values, as they are. Raises ValueError if two values have one name: scores, labels and
    channels go by the name, so one of the classes would be lost.
    """
    values: dict[str, int] = {}
    for value, name in sorted(classes.items()):
        if name in values:
            raise ValueError(
                f"label values {values[name]} and {value} are both called {name!r}; "
                "give each a name of its own"
            )
        values[name] = value
    return classes


class Record(BaseModel):
    """A frozen, strict record with canonical JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def to_json(self) -> str:
        """Canonical JSON: byte-identical for equal records."""
        return canonical_json(self.model_dump(mode="json"))


# ---------------------------------------------------------------------------------------- before the store


@dataclass(frozen=True, slots=True)
class Case:
    """One examination as its challenge lays it out; nothing is read yet.

    `images` holds one URL per channel, or one URL of a 4D file whose last axis is the channel.
    `modalities` has one lower-case entry per channel: `ct`, `mr`, ...
    """

    dataset: str
    id: str
    patient: str
    images: tuple[str, ...]
    label: str | None
    modalities: tuple[str, ...]
    split: SplitName = "train"


@dataclass(frozen=True, slots=True)
class Scaling:
    """What numbers stand for: `value = number * scale_factor + add_offset` (the CF conventions' names)."""

    scale_factor: float = 1.0
    add_offset: float = 0.0

    def values(self, numbers: Shaped[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
        """The values of numbers, rounded to float32 once. Unscaled float32 is returned as it is."""
        if self == Scaling():
            return numbers.astype("float32", copy=False)
        return (numbers.astype("float64") * self.scale_factor + self.add_offset).astype("float32")

    def round_into(
        self, numbers: Shaped[np.ndarray, "*shape"], values: Float32[np.ndarray, "*shape"]
    ) -> None:
        """Write the nearest numbers of values to `numbers`. The values are overwritten on the way."""
        if self != Scaling():
            values -= self.add_offset
            values /= self.scale_factor
        if numbers.dtype.kind in "iu":
            values.round(out=values)
        numbers[...] = values


@dataclass(frozen=True, slots=True)
class Volume:
    """A case in memory: `c z y x` image, `z y x` uint8 label or None, and where it came from.

    The image is held in the smallest form that is exact: in numbers of a file or a store, or as float32. Its
    intensities are `scaling.values(image)`; whoever needs them takes a few slices at a time.
    """

    image: Shaped[np.ndarray, "channel z y x"]
    label: UInt8[np.ndarray, "z y x"] | None
    spacing_mm: Triple
    modalities: tuple[str, ...]
    geometry: Geometry
    scaling: Scaling = Scaling()


class Geometry(Record):
    """All that is needed to put an array of the stored grid back into the source file's grid, exactly.

    The source file (`original_*`, `x y z`) is turned to RAS and to `z y x` (`oriented_*`), cropped to
    `crop_start <= index < crop_stop` of the oriented grid, and resampled to `shape` at `spacing_mm`.
    """

    original_shape: Shape
    original_affine: tuple[tuple[float, float, float, float], ...]
    oriented_shape: Shape
    oriented_spacing_mm: Triple
    crop_start: Shape
    crop_stop: Shape
    shape: Shape
    spacing_mm: Triple


# ----------------------------------------------------------------------------------------- inside the store


class Intensity(Record):
    """One channel's intensities: the source's statistics, and `stored = (clip(source) - offset) / scale`.

    `background` is the stored value that pads a patch beyond the volume's border.
    """

    minimum: float
    maximum: float
    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float
    clip_low: float | None = None
    clip_high: float | None = None
    offset: float
    scale: float
    background: float


class SourceFile(Record):
    """A file (or DICOM series) a case was made from, by its path relative to the dataset's source."""

    path: str
    size_bytes: int
    sha256: str


class StoredObject(Record):
    """An object of a case, by its path relative to the dataset's folder in the store."""

    path: str
    size_bytes: int
    sha256: str


class CaseRecord(Record):
    """The commit record of one case: it exists when this does.

    `key` identifies the input: hash of the source files' hashes and of the recipe. `foreground` maps a class
    value (as text; `any` is all tissue, told without a label) to at most a few dozen voxels `(z, y, x)` of
    it, for foreground-biased sampling; `voxels` counts the voxels of each class. `fingerprints` identify each
    channel's source voxels: two cases with one in common show the same scan, whatever their names.
    """

    id: str
    dataset: str
    patient: str
    task: str
    group: str
    split: SplitName
    labelled: bool
    modalities: tuple[str, ...]
    geometry: Geometry
    intensities: tuple[Intensity, ...]
    foreground: dict[str, tuple[Shape, ...]]
    voxels: dict[str, int]
    sources: tuple[SourceFile, ...]
    fingerprints: tuple[str, ...] = ()
    key: str
    objects: tuple[StoredObject, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        channels, described = len(self.modalities), len(self.intensities)
        if channels != described or not channels or min(self.geometry.shape) < 1:
            raise ValueError(f"{channels} channels of {self.geometry.shape}, {described} with intensities")
        return self

    @property
    def shape(self) -> Shape:
        """Stored shape `z y x`."""
        return self.geometry.shape

    @property
    def image_path(self) -> str:
        """Path of the case's OME-Zarr group, relative to the dataset's folder."""
        return f"{self.id}.zarr"


class Quarantined(Record):
    """A case that could not be stored, and why."""

    id: str
    patient: str
    key: str
    reason: str
    sources: tuple[str, ...]


class ManifestHeader(Record):
    """What holds for every case of a dataset; the first line of its manifest."""

    format: Literal[1] = 1
    dataset: str
    task: str
    group: str
    classes: Annotated[dict[int, str], AfterValidator(distinct)]
    channels: tuple[str, ...]
    recipe: dict[str, Any]
    recipe_hash: str
    code_version: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The committed cases of one dataset, sorted by id, and the hash of the manifest's bytes.

    `cases` of a manifest that was read lie in its file: each is parsed when it is asked for.
    """

    header: ManifestHeader
    cases: Sequence[CaseRecord]
    sha256: str

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return self.header.dataset


# -------------------------------------------------------------------------------------------- after the store


@dataclass(frozen=True, slots=True)
class Region:
    """A box of one channel of one stored case; it may reach beyond the volume, where it is padded."""

    dataset: str
    case: str
    channel: int
    start: Shape
    shape: Shape


class Lineage(Record):
    """Where a model comes from; logged with every run and registered version."""

    config_hash: str
    code_version: str
    manifests: dict[str, str] = {}
    parent_run: str | None = None
    parent_model: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a job did: `summary` becomes the `--json` line, `lines` are for people.

    A `silent` one says nothing: another process of the same job speaks for it.
    """

    summary: Mapping[str, Any]
    lines: tuple[str, ...] = ()
    status: Literal["done", "failed", "interrupted"] = "done"
    warnings: tuple[str, ...] = ()
    silent: bool = False
