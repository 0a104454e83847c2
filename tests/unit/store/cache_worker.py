"""Processes that read one store through one cache."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hssl_dist.records import CaseRecord, Region
from hssl_dist.store.cache import VolumeCache
from hssl_dist.store.reader import StoreReader
from hssl_dist.store.tensorstore_backend import TensorstoreBackend

PATCH = (6, 16, 16)


@dataclass(frozen=True)
class Work:
    """What a process needs: records as JSON, where things are, and where it notes what it decodes."""

    root: str
    folder: str
    max_bytes: int
    records: tuple[str, ...]
    notes: str
    pause_s: float = 0.0  # in the middle of each filling

    def cases(self) -> list[CaseRecord]:
        return [CaseRecord.model_validate_json(text) for text in self.records]

    def reader(self) -> StoreReader:
        cache = VolumeCache(Path(self.folder), self.max_bytes, lambda text: None)
        return StoreReader(self.root, NotingBackend(TensorstoreBackend(self.root, 1 << 20), self), cache)


@dataclass(frozen=True)
class NotingBackend:
    """A backend that notes each volume it decodes, and may take its time over it."""

    inner: Any
    work: Work

    def open(self, record: CaseRecord, array: str) -> Any:
        return NotingArray(self.inner.open(record, array), record.id, self.work)

    def fetched(self) -> Any:
        return self.inner.fetched()


@dataclass(frozen=True)
class NotingArray:
    inner: Any
    case: str
    work: Work

    @property
    def shape(self) -> Any:
        return self.inner.shape

    @property
    def dtype(self) -> Any:
        return self.inner.dtype

    @property
    def scaling(self) -> Any:
        return self.inner.scaling

    def start(self, box: Any) -> Any:
        return self.inner.start(box)

    def read_into(self, box: Any, out: np.ndarray) -> None:
        note(self.work.notes, f"start {self.case}")
        self.inner.read_into(box, out)
        if self.work.pause_s:
            end, out[:, out.shape[1] // 2 :] = out[:, out.shape[1] // 2 :].copy(), 0
            time.sleep(self.work.pause_s)
            out[:, out.shape[1] // 2 :] = end
        note(self.work.notes, f"end {self.case}")


def note(path: str, line: str) -> None:
    """One line, in one write."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def notes(path: str) -> list[str]:
    return Path(path).read_text().split("\n")[:-1] if Path(path).exists() else []


def check_regions(reader: StoreReader, cases: list[CaseRecord], seed: int, count: int) -> None:
    """Read random regions and compare them with what `reference_value` says is in them."""
    rng = np.random.default_rng(seed)
    out = np.empty((4, *PATCH), np.float32)
    for _ in range(count):
        pairs = []
        for _ in range(len(out)):
            record = cases[rng.integers(len(cases))]
            start = tuple(int(rng.integers(-2, side - 4)) for side in record.shape)
            pairs.append((record, Region(record.dataset, record.id, 0, start, PATCH)))
        reader.fill(pairs, out)
        for row, (record, region) in zip(out, pairs, strict=True):
            np.testing.assert_array_equal(row, reference(record, region))


def volume_of(number: int, shape: tuple[int, ...]) -> np.ndarray:
    """A volume that can be computed anew anywhere: every voxel has another value in every volume."""
    values = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    return np.float32((values * 7 + number * 1009) % 20011 - 10000) / np.float32(1024)


def reference(record: CaseRecord, region: Region) -> np.ndarray:
    """A region of `volume_of` the record's number, padded with its background."""
    volume = volume_of(int(record.id.removeprefix("v")), record.shape)
    wide = np.pad(volume, 32, constant_values=record.intensities[0].background)
    return wide[tuple(slice(a + 32, a + 32 + n) for a, n in zip(region.start, region.shape, strict=True))]


# ----------------------------------------------------------------------------------------- in processes


def two_generations(work: Work, number: int, barrier: Any, first: int, second: int) -> None:
    """Read the first volumes, then with a new reader the last ones, in step with the other processes."""
    cases = work.cases()
    for generation, chosen in enumerate((cases[:first], cases[-second:])):
        reader = work.reader()
        barrier.wait(60)
        check_regions(reader, chosen, seed=10 * number + generation, count=60)
        note(work.notes, f"figures {generation} {reader.figures().cache_hits} {reader.figures().regions}")
        barrier.wait(60)


def same_volume(work: Work, barrier: Any) -> None:
    """Read the first volume at the same moment as the others."""
    reader, cases = work.reader(), work.cases()
    barrier.wait(60)
    check_regions(reader, cases[:1], seed=os.getpid(), count=2)


def endless(work: Work) -> None:
    """Read all volumes, with a new reader each time, until killed."""
    cases = work.cases()
    for seed in range(10**9):
        check_regions(work.reader(), cases, seed, count=3)


def with_file_size_limit(work: Work, limit: int) -> None:
    """Read while no file may be longer than `limit`; the process's end tells whether all was right."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    told: list[str] = []
    cache = VolumeCache(Path(work.folder), work.max_bytes, told.append)
    reader = StoreReader(work.root, TensorstoreBackend(work.root, 1 << 20), cache)
    check_regions(reader, work.cases(), seed=1, count=20)
    assert reader.figures().cache_hits == 0
    expected = f"{work.folder} cannot be written (File too large): volumes are read from the store"
    assert told == [expected], told
