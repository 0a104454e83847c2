"""A pretraining run small enough for tests: volumes in memory, a network of a few thousand weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hssl_dist.config.parts import StoreConfig, TrackingConfig
from hssl_dist.config.preprocess import StorageConfig
from hssl_dist.config.pretrain import (
    CheckpointConfig,
    ObjectiveConfig,
    PretrainConfig,
    SamplingConfig,
    StageConfig,
)
from hssl_dist.records import (
    CaseRecord,
    Geometry,
    Intensity,
    Manifest,
    ManifestHeader,
    Region,
    Volume,
    content_hash,
)
from hssl_dist.store import ReadFigures, StoredForm, write_manifest
from hssl_dist.store.writer import write_case
from tests.tiny_network import NETWORK

SHAPE = (10, 24, 24)
GROUPS = {"spleen": "abdomen-ct", "liver": "abdomen-ct", "heart": "heart-mr"}
IDENTITY = tuple(tuple(float(row == column) for column in range(4)) for row in range(4))


def manifests(cases: int = 3) -> dict[str, Manifest]:
    return {task: _manifest(task, group, cases) for task, group in GROUPS.items()}


def _manifest(task: str, group: str, cases: int) -> Manifest:
    header = ManifestHeader(
        dataset=task,
        task=task,
        group=group,
        classes={},
        channels=("ct",),
        recipe={},
        recipe_hash="",
        code_version="",
    )
    records = tuple(_record(task, group, f"case_{number}") for number in range(cases))
    return Manifest(header, records, content_hash([record.to_json() for record in records]))


def _record(task: str, group: str, case: str) -> CaseRecord:
    spacing = (1.0, 1.0, 1.0)
    geometry = Geometry(
        original_shape=SHAPE[::-1],
        original_affine=IDENTITY,
        oriented_shape=SHAPE,
        oriented_spacing_mm=spacing,
        crop_start=(0, 0, 0),
        crop_stop=SHAPE,
        shape=SHAPE,
        spacing_mm=spacing,
    )
    intensity = Intensity(
        minimum=-3,
        maximum=3,
        mean=0,
        std=1,
        percentile_00_5=-2,
        percentile_99_5=2,
        offset=0,
        scale=1,
        background=-1,
    )
    return CaseRecord(
        id=case,
        dataset=task,
        patient=case,
        task=task,
        group=group,
        split="train",
        labelled=False,
        modalities=("ct",),
        geometry=geometry,
        intensities=(intensity,),
        foreground={"any": ((5, 12, 12), (3, 6, 18))},
        voxels={"any": 2},
        sources=(),
        key="",
        objects=(),
    )


@dataclass
class ArrayReader:
    """A store's reader over volumes made up from their names: blobs, and stripes of a width of the task.

    `poisoned` names a case `dataset/id` whose voxels are not finite.
    """

    poisoned: str | None = None
    _volumes: dict[str, np.ndarray] = field(default_factory=dict)

    def image(self, record: CaseRecord) -> np.ndarray:
        name = f"{record.dataset}/{record.id}"
        if name not in self._volumes:
            rng = np.random.default_rng(int(content_hash(name)[:8], 16))
            grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in record.shape), indexing="ij"))
            volume = sum(
                rng.normal()
                * np.exp(-((grid - rng.uniform(-1, 1, (3, 1, 1, 1))) ** 2).sum(0) * rng.uniform(3, 20))
                for _ in range(12)
            )
            stripes = np.sin(grid[2] * {"heart": 6, "liver": 18, "spleen": 40}[record.task])
            volume = np.float32(volume + stripes + 0.1 * rng.normal(size=record.shape))
            if name == self.poisoned:
                volume[:] = np.nan
            self._volumes[name] = volume[None]
        return self._volumes[name]

    def label(self, record: CaseRecord) -> np.ndarray:
        return np.zeros(record.shape, np.uint8)

    def region(self, record: CaseRecord, region: Region) -> np.ndarray:
        out = np.full(region.shape, record.intensities[region.channel].background, np.float32)
        source, target = [], []
        for start, size, length in zip(region.start, region.shape, record.shape, strict=True):
            low, high = max(start, 0), min(start + size, length)
            source.append(slice(low, high))
            target.append(slice(low - start, high - start))
        out[tuple(target)] = self.image(record)[region.channel][tuple(source)]
        return out

    def label_region(self, record: CaseRecord, region: Region) -> np.ndarray:
        return np.zeros(region.shape, np.uint8)

    def fill(self, pairs: Sequence[tuple[CaseRecord, Region]], out: np.ndarray) -> None:
        out[:] = [self.region(record, region) for record, region in pairs]

    def fill_numbers(self, pairs: Sequence[tuple[CaseRecord, Region]], out: np.ndarray) -> StoredForm:
        scalings = np.tile(np.float32([2.0**-12, 0.0]), (len(pairs), 1))
        for numbers, scaling, (record, region) in zip(out, scalings, pairs, strict=True):
            values = self.region(record, region)
            if not np.isfinite(values).all():
                values, scaling[0] = np.zeros(values.shape), np.nan
            numbers[...] = np.rint(values * 2**12)
        return StoredForm(out.dtype, scalings)

    def figures(self) -> ReadFigures:
        return ReadFigures()


def write_store(root: str, cases: int = 3) -> None:
    """The same manifests and volumes as a store on disk."""
    reader = ArrayReader()
    for manifest in manifests(cases).values():
        records = []
        for record in manifest.cases:
            geometry = record.geometry
            volume = Volume(reader.image(record), None, geometry.spacing_mm, record.modalities, geometry)
            records.append(write_case(root, record, volume, {}, StorageConfig()))
        write_manifest(root, manifest.header, records)


@dataclass
class Recorder:
    """Callbacks that keep what they are told, ask to stop once `stop_at` steps are done, and lose ranks after
    step `losing_at`.
    """

    stop_at: int | None = None
    losing_at: int | None = None
    done: int = 0
    metrics: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)
    save_s: list[float] = field(default_factory=list)
    warnings: list[tuple[int, str]] = field(default_factory=list)

    def on_step(self, step: int) -> None:
        self.done = step

    def on_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self.metrics.append((step, dict(metrics)))

    def on_warning(self, step: int, text: str) -> None:
        self.warnings.append((step, text))

    def on_checkpoint(self, step: int, url: str, seconds: float) -> None:
        self.saved.append(step)
        self.save_s.append(seconds)

    def should_stop(self) -> bool:
        return self.stop_at is not None and self.done + 1 >= self.stop_at

    def should_look(self) -> bool:
        return self.losing_at is not None

    def is_losing_ranks(self) -> bool:
        return self.done == self.losing_at


def config(**changes: object) -> PretrainConfig:
    values: dict[str, object] = {
        "name": "tiny",
        "global_batch": 6,
        "log_every_steps": 1,
        "sampling": SamplingConfig(patch_size=(4, 8, 8), block_size=3),
        "network": NETWORK,
        "objective": ObjectiveConfig(
            projection_size=8, dense_points=12, dense_distance=2.0, learn_temperature=True
        ),
        "encoder": StageConfig(steps=4, learning_rate=1e-2, warmup_steps=1),
        "decoder": StageConfig(steps=3, learning_rate=1e-2, warmup_steps=1, encoder_rate=0.3),
        "checkpoint": CheckpointConfig(every_steps=2),
    }
    return PretrainConfig.model_validate(values | changes)


def job_config(folder: Path, name: str, **changes: object) -> PretrainConfig:
    """A job in this process, of which store, runs and tracking are in `folder`."""
    there: dict[str, object] = {
        "name": name,
        "store": StoreConfig(url=str(folder / "store")),
        "runs": str(folder / "runs"),
        "tracking": TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db"),
        "runner": "inline",
        "register_as": "tiny-unet",
    }
    return config(**there | changes)
