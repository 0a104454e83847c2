"""The volumes of the loader's benchmark, in each arm's own storage, and what must be delivered of them.

Every arm holds the same float32 values: those that the store delivers. So all must deliver the same bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from hssl_dist.config.loading import load_config
from hssl_dist.config.preprocess import PreprocessConfig, StorageConfig
from hssl_dist.config.pretrain import SamplingConfig
from hssl_dist.datasets import discover
from hssl_dist.imaging import CaseSurvey, resolve_recipe
from hssl_dist.jobs.preprocess_cases import Assignment, store_cases, survey_cases
from hssl_dist.records import (
    CaseRecord,
    Geometry,
    Intensity,
    Manifest,
    ManifestHeader,
    Shape,
    Volume,
    content_hash,
)
from hssl_dist.sampling import Schedule
from hssl_dist.store import open_reader, read_manifests, write_manifest
from hssl_dist.store.writer import write_case

if TYPE_CHECKING:
    from jaxtyping import Float32

SEED = 7
DATASET = "generated"
_STD_HU, _BRIGHT_HU = 400.0, 120.0


@dataclass(frozen=True)
class Prepared:
    """Volumes in a store and, in a scratch folder, as `arrays/<dataset>/<case>.npy`, float32 `1 z y x`."""

    folder: str
    store: str
    """The store's root."""
    cases: tuple[tuple[str, str], ...]
    """Dataset and name of each case."""
    shapes: tuple[Shape, ...]

    def array(self, case: tuple[str, str]) -> Path:
        """The file of a case's values."""
        return Path(self.folder, "arrays", *case).with_suffix(".npy")


@dataclass(frozen=True)
class Patch:
    """Where a patch lies: the case's number and its first voxel."""

    case: int
    start: Shape


@dataclass(frozen=True)
class Draws:
    """Patches of one shape in the order of the schedule, again and again."""

    shape: Shape
    batch: int
    patches: tuple[Patch, ...]


# ------------------------------------------------------------------------------------------------- volumes


def anatomy(shape: Shape, seed: int) -> Float32[np.ndarray, "1 z y x"]:
    """A volume like a CT's, normalised: air, a body of smooth tissue, organs with borders, scanner noise.

    Source values are whole Hounsfield units.
    """
    rng = np.random.default_rng(seed)
    coarse = tuple(max(2, side // 16) for side in shape)
    factors = [side / few for side, few in zip(shape, coarse, strict=True)]
    smooth = ndimage.zoom(rng.standard_normal(coarse, dtype=np.float32), factors, order=1)
    axes = [np.linspace(-1.0, 1.0, side, dtype=np.float32) for side in shape]
    radius = np.sqrt(0.2 * axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2)
    tissue = 40.0 + 30.0 * smooth + np.where(smooth > 0.9, 120.0, 0.0) - np.where(smooth < -1.1, 700.0, 0.0)
    tissue += rng.standard_normal(shape, dtype=np.float32) * 18.0
    units = np.rint(np.where(radius < 0.85, tissue, -1000.0)).clip(-1000.0, 1000.0)
    normal: Float32[np.ndarray, "z y x"] = (units / _STD_HU).astype(np.float32)
    return normal[None]


def generate(folder: str, shape: Shape, count: int, storage: StorageConfig | None = None) -> Prepared:
    """Write `count` volumes into a store and as arrays."""
    write_volumes(f"{folder}/store", DATASET, shape, count, SEED, storage)
    return with_arrays(folder)


def write_volumes(
    root: str,
    dataset: str,
    shape: Shape,
    count: int,
    seed: int,
    storage: StorageConfig | None = None,
    *,
    labelled: bool = False,
) -> None:
    """Write `count` volumes into the store at `root`, as a dataset that is a task and a group of its own.

    Labelled, the brightest tissue is a class.
    """
    own = {"dataset": dataset, "task": dataset, "group": dataset}
    classes = {1: "bright"} if labelled else {}
    records = []
    for index in range(count):
        image = anatomy(shape, seed + index)
        record = _record(f"case{index:03}", shape, image).model_copy(update=own)
        label = (image[0] > _BRIGHT_HU / _STD_HU).astype(np.uint8) if labelled else None
        if label is not None:
            places = [
                tuple(map(int, place)) for place in np.argwhere(label)[:: max(1, int(label.sum()) // 64)]
            ]
            known = {"labelled": True, "foreground": {"1": tuple(places)}, "voxels": {"1": int(label.sum())}}
            record = record.model_copy(update=known)
        volume = Volume(image, label, (1.0, 1.0, 1.0), ("ct",), _geometry(shape))
        records.append(write_case(root, record, volume, classes, storage or StorageConfig()))
    write_manifest(root, _HEADER.model_copy(update=own | {"classes": classes}), records)


def real(folder: str, config_file: str, shape: Shape, per_dataset: int) -> Prepared:
    """Preprocess cases of the real datasets of a config, evenly spaced over each; take those no side of which
    is shorter than `shape`'s.
    """
    config = load_config(PreprocessConfig, "loader", ["--config", config_file])
    for dataset_config in config.datasets:
        dataset = discover(dataset_config, config.source_root)
        count = min(per_dataset, len(dataset.cases))
        cases = [dataset.cases[index * len(dataset.cases) // count] for index in range(count)]
        surveys = survey_cases(cases, dataset.classes, config.max_voxels)
        read = [survey for survey in surveys if isinstance(survey, CaseSurvey)]
        recipe = resolve_recipe(dataset_config, dataset.classes, dataset.modalities, read, config.storage)
        assignments = [
            Assignment(case, dataset.name, dataset_config.group, (), (), content_hash(case.id))
            for case in cases
        ]
        stored = store_cases(assignments, f"{folder}/store", recipe, config.storage, config.max_voxels)
        records = [record for record in stored if isinstance(record, CaseRecord)]
        header = _HEADER.model_copy(
            update={"dataset": dataset.name, "classes": dataset.classes, "channels": dataset.modalities}
        )
        write_manifest(f"{folder}/store", header, records)
    return with_arrays(folder, shape)


def with_arrays(folder: str, at_least: Shape = (1, 1, 1)) -> Prepared:
    """Write the values of the store's cases as the reference reader has them."""
    reader = open_reader(f"{folder}/store", "zarr")
    found = []
    for dataset, manifest in read_manifests(f"{folder}/store").items():
        for record in manifest.cases:
            if any(side < least for side, least in zip(record.shape, at_least, strict=True)):
                continue
            path = Path(folder, "arrays", dataset, f"{record.id}.npy")
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, reader.image(record)[:1])
            found.append(((dataset, record.id), record.shape))
    cases, shapes = zip(*found, strict=True)
    return Prepared(folder, f"{folder}/store", cases, shapes)


def _geometry(shape: Shape) -> Geometry:
    x_y_z = (shape[2], shape[1], shape[0])
    affine = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0))
    return Geometry(
        original_shape=x_y_z,
        original_affine=affine,
        oriented_shape=shape,
        oriented_spacing_mm=(1.0, 1.0, 1.0),
        crop_start=(0, 0, 0),
        crop_stop=shape,
        shape=shape,
        spacing_mm=(1.0, 1.0, 1.0),
    )


def _record(name: str, shape: Shape, image: Float32[np.ndarray, "1 z y x"]) -> CaseRecord:
    intensity = Intensity(
        minimum=-1000.0,
        maximum=1000.0,
        mean=0.0,
        std=_STD_HU,
        percentile_00_5=-1000.0,
        percentile_99_5=1000.0,
        offset=0.0,
        scale=_STD_HU,
        background=float(image.min()),
    )
    return CaseRecord(
        id=name,
        dataset=DATASET,
        patient=name,
        task=DATASET,
        group=DATASET,
        split="train",
        labelled=False,
        modalities=("ct",),
        geometry=_geometry(shape),
        intensities=(intensity,),
        foreground={},
        voxels={},
        sources=(),
        key=name,
        objects=(),
    )


_HEADER = ManifestHeader(
    dataset=DATASET,
    task=DATASET,
    group=DATASET,
    classes={},
    channels=("ct",),
    recipe={},
    recipe_hash=content_hash({}),
    code_version="benchmark",
)


# --------------------------------------------------------------------------------------------------- patches


class Repeated(Schedule):
    """The schedule whose first `steps` steps come again and again, so that all arms can deliver the same."""

    def __init__(self, manifests: dict[str, Manifest], shape: Shape, batch: int, steps: int) -> None:
        config = SamplingConfig(patch_size=shape, margin=0.0, foreground=0.0, block_size=batch)
        super().__init__(manifests, config, SEED, batch)
        self._steps = steps

    def draw(self, step: int, index: int) -> Any:
        """See `Schedule.draw`."""
        return super().draw(step % self._steps, index)


def chosen_manifests(prepared: Prepared) -> dict[str, Manifest]:
    """The store's manifests, of the prepared cases alone and of their first channel."""
    wanted = set(prepared.cases)
    chosen = {}
    for dataset, manifest in read_manifests(prepared.store).items():
        cases = [case for case in manifest.cases if (dataset, case.id) in wanted]
        if len(cases) == len(manifest.cases) and len(manifest.header.channels) == 1:
            chosen[dataset] = manifest  # as the product reads it
        elif cases:
            first = [case.model_copy(update={"modalities": case.modalities[:1]}) for case in cases]
            chosen[dataset] = Manifest(manifest.header, first, manifest.sha256)
    return chosen


def draw_patches(prepared: Prepared, shape: Shape, batch: int, count: int) -> Draws:
    """The patches of the schedule's first `count / batch` steps."""
    schedule = Repeated(chosen_manifests(prepared), shape, batch, count // batch)
    numbers = {case: number for number, case in enumerate(prepared.cases)}
    regions = [schedule.draw(step, index).region for step in range(count // batch) for index in range(batch)]
    patches = tuple(Patch(numbers[region.dataset, region.case], region.start) for region in regions)
    return Draws(shape, batch, patches)


def digest(patch: np.ndarray[Any, Any]) -> str:
    """SHA-256 of a patch's bytes."""
    return hashlib.sha256(np.ascontiguousarray(patch)).hexdigest()


def reference_digests(prepared: Prepared, draws: Draws) -> dict[str, str]:
    """What must be delivered, by `key`, read by the reference reader."""
    reader = open_reader(prepared.store, "zarr")
    schedule = Repeated(
        chosen_manifests(prepared), draws.shape, draws.batch, len(draws.patches) // draws.batch
    )
    digests = {}
    for number, patch in enumerate(draws.patches):
        draw = schedule.draw(*divmod(number, draws.batch))
        digests[key(patch)] = digest(reader.region(draw.record, draw.region))
    return digests


def key(patch: Patch) -> str:
    """A patch's name."""
    return f"{patch.case}:{','.join(map(str, patch.start))}"
