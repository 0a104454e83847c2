"""Case records, manifests and a reader of arrays in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from hssl_dist.records import CaseRecord, Geometry, Intensity, Manifest, ManifestHeader, Region
from hssl_dist.store import StoredForm

BACKGROUND = -7.0


def _record(
    id_: str = "case",
    patient: str | None = None,
    dataset: str = "heart",
    shape: tuple[int, int, int] = (10, 20, 20),
    labelled: bool = True,
    channels: int = 1,
    foreground: dict[str, tuple[tuple[int, int, int], ...]] | None = None,
    task: str | None = None,
    group: str = "group",
    fingerprints: tuple[str, ...] = (),
) -> CaseRecord:
    geometry = Geometry(
        original_shape=shape[::-1],
        original_affine=tuple(tuple(float(i == j) for j in range(4)) for i in range(4)),
        oriented_shape=shape,
        oriented_spacing_mm=(1, 1, 1),
        crop_start=(0, 0, 0),
        crop_stop=shape,
        shape=shape,
        spacing_mm=(1, 1, 1),
    )
    intensity = Intensity(
        minimum=0,
        maximum=1,
        mean=0,
        std=1,
        percentile_00_5=0,
        percentile_99_5=1,
        offset=0,
        scale=1,
        background=BACKGROUND,
    )
    return CaseRecord(
        id=id_,
        dataset=dataset,
        patient=id_ if patient is None else patient,
        task=task or dataset,
        group=group,
        split="train",
        labelled=labelled,
        modalities=("mr",) * channels,
        geometry=geometry,
        intensities=(intensity,) * channels,
        foreground=foreground or {},
        voxels={},
        sources=(),
        fingerprints=fingerprints,
        key="key",
        objects=(),
    )


def _manifest(*cases: CaseRecord) -> Manifest:
    header = ManifestHeader(
        dataset=cases[0].dataset,
        task=cases[0].task,
        group=cases[0].group,
        classes={1: "structure"},
        channels=cases[0].modalities,
        recipe={},
        recipe_hash="hash",
        code_version="test",
    )
    return Manifest(header, tuple(cases), "sha")


class MemoryReader:
    """A reader of made-up volumes, whole numbers of steps; those named in `broken` cannot be read."""

    step = 2.0**-9

    def __init__(self, broken: Sequence[str] = (), error: Exception | None = None) -> None:
        self.broken, self.error, self.calls = set(broken), error or OSError("disk on fire"), 0

    def image(self, record: CaseRecord) -> np.ndarray:
        if record.id in self.broken:
            raise self.error
        rng = np.random.default_rng(list(record.image_path.encode()))
        return self.step * rng.integers(-900, 900, (len(record.modalities), *record.shape)).astype(np.float32)

    def label(self, record: CaseRecord) -> np.ndarray:
        return (self.image(record)[0] * 10 % 4).astype(np.uint8)

    def region(self, record: CaseRecord, region: Region) -> np.ndarray:
        assert (record.dataset, record.id) == (region.dataset, region.case)
        return cut(self.image(record)[region.channel], region, BACKGROUND)

    def label_region(self, record: CaseRecord, region: Region) -> np.ndarray:
        return cut(self.label(record), region, 0)

    def fill(self, pairs: Sequence[tuple[CaseRecord, Region]], out: np.ndarray) -> None:
        self.calls += 1
        out[:] = [self.region(record, region) for record, region in pairs]

    def fill_numbers(self, pairs: Sequence[tuple[CaseRecord, Region]], out: np.ndarray) -> StoredForm:
        self.calls += 1
        for place, (numbers, (record, region)) in enumerate(zip(out, pairs, strict=True)):
            numbers[...] = (self.region(record, region) - place) / self.step
        scalings = np.array([(self.step, place) for place in range(len(pairs))], np.float32)
        return StoredForm(out.dtype, scalings)


def cut(volume: np.ndarray, region: Region, background: float) -> np.ndarray:
    """The region, voxel by voxel."""
    result = np.full(region.shape, background, volume.dtype)
    for place in np.ndindex(region.shape):
        source = tuple(int(s + p) for s, p in zip(region.start, place, strict=True))
        if all(0 <= s < n for s, n in zip(source, volume.shape, strict=True)):
            result[place] = volume[source]
    return result


@pytest.fixture
def record() -> Callable[..., CaseRecord]:
    return _record


@pytest.fixture
def manifest() -> Callable[..., Manifest]:
    return _manifest


@pytest.fixture
def memory_reader() -> Callable[..., MemoryReader]:
    return MemoryReader
