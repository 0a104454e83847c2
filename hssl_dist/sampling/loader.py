"""Batches of regions for pretraining, read ahead of the training step."""

from __future__ import annotations

import functools
import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from hssl_dist.errors import HsslError, StoreError
from hssl_dist.memory import is_out_of_memory, within_memory
from hssl_dist.records import CaseRecord, Region, content_hash
from hssl_dist.sampling.buffers import Buffers
from hssl_dist.sampling.prefetch import read_ahead
from hssl_dist.sampling.schedule import Schedule

if TYPE_CHECKING:
    from hssl_dist.store import Reader, StoredForm

Pairs = Sequence[tuple[CaseRecord, Region]]

_VOXEL_BYTES = 2
_TYPES = {"int16": torch.int16, "float16": torch.float16}
_NUMBERS = 4096  # of cases and patients, kept


@dataclass(frozen=True, slots=True)
class Regions:
    """Regions as their volumes are stored, two bytes a voxel, until their values are needed.

    So they take half of the memory on their way to the device, which converts them at no cost. A value is
    `number * factor + offset`, by the two of its region, exactly as `Reader.region` has it; without `offsets`
    all are 0.
    """

    numbers: Shaped[Tensor, "batch 1 z y x"]
    factors: Float[Tensor, " batch"]
    offsets: Float[Tensor, " batch"] | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: slice) -> Regions:
        offsets = self.offsets
        return Regions(self.numbers[rows], self.factors[rows], None if offsets is None else offsets[rows])

    def tensors(self) -> dict[str, Tensor]:
        """By name, as to write them to a file; `Regions(**tensors)` is the same again."""
        named = {"numbers": self.numbers, "factors": self.factors, "offsets": self.offsets}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def to(self, device: torch.device) -> Regions:
        """The same on a device; from pinned memory it does not wait."""
        offsets = None if self.offsets is None else self.offsets.to(device, non_blocking=True)
        return Regions(
            self.numbers.to(device, non_blocking=True), self.factors.to(device, non_blocking=True), offsets
        )

    def values(self) -> Float[Tensor, "batch 1 z y x"]:
        """Intensities in float32, where the numbers are."""
        values = self.numbers.to(torch.float32).mul_(self.factors.view(-1, 1, 1, 1, 1))
        return values if self.offsets is None else values.add_(self.offsets.view(-1, 1, 1, 1, 1))


def _regions(buffer: Tensor, form: StoredForm) -> Regions:
    """Regions in a buffer that was filled with numbers of a form."""
    factors, offsets = torch.from_numpy(form.scalings).unbind(1)
    numbers = buffer.view(_TYPES[form.dtype.name])[:, None]
    return Regions(numbers, factors, offsets if offsets.any() else None)


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of a step's global batch, on the CPU.

    `indices` are the samples' places in the global batch, `seeds` their seeds; `tasks` and `groups` number
    the schedule's names; `cases` and `patients` are equal where case or patient are, on all ranks. `digest`
    is a sum of 32 bits for each sample, of a hash of its seed and region. `wait_s` is how long training stood
    still for it.
    """

    step: int
    indices: tuple[int, ...]
    seeds: tuple[int, ...]
    regions: Regions
    tasks: Int[Tensor, " batch"]
    groups: Int[Tensor, " batch"]
    cases: Int[Tensor, " batch"]
    patients: Int[Tensor, " batch"]
    digest: int
    wait_s: float = 0.0


def rank_slice(global_batch: int, rank: int, world_size: int) -> range:
    """The consecutive samples of a global batch that are a rank's; sizes differ by one at most."""
    return range(rank * global_batch // world_size, (rank + 1) * global_batch // world_size)


class PretrainingLoader:
    """The schedule's batches for one rank.

    `pin_memory` puts the regions where a CUDA device can fetch them while it computes; only with CUDA.
    """

    def __init__(
        self,
        schedule: Schedule,
        reader: Reader,
        rank: int = 0,
        world_size: int = 1,
        *,
        pin_memory: bool = False,
    ) -> None:
        self._schedule = schedule
        self._reader = reader
        self._indices = rank_slice(schedule.global_batch, rank, world_size)
        shape = (len(self._indices), *schedule.region_shape)
        self._buffers = Buffers(shape, kept=self.depth + 1, pin_memory=pin_memory)

    @property
    def batch_bytes(self) -> int:
        """Memory of one batch's regions."""
        return len(self._indices) * math.prod(self._schedule.region_shape) * _VOXEL_BYTES

    @property
    def depth(self) -> int:
        """Batches read ahead: as configured, fewer if they take too much memory, at least one."""
        config = self._schedule.config
        return max(1, min(config.prefetch_batches, config.prefetch_bytes // max(1, self.batch_bytes)))

    def batches(self, start_step: int, stop_step: int) -> Generator[Batch]:
        """Batches of steps `start_step` to `stop_step - 1`, read ahead; close it if it is not used up.

        Raises StoreError, naming the case, if a region cannot be read, and OutOfMemoryError.
        """
        for batch, wait_s in read_ahead(self._read_within_memory, range(start_step, stop_step), self.depth):
            yield replace(batch, wait_s=wait_s)

    def _read_within_memory(self, step: int) -> Batch:
        depth, size_bytes = self.depth, self.batch_bytes
        remedy = f"a batch of this rank takes {size_bytes} bytes: lower sampling.patch_size or global_batch"
        if depth > 1:
            remedy = (
                f"{depth} batches of {size_bytes} bytes are read ahead: set sampling.prefetch_bytes to "
                f"{depth // 2 * size_bytes}, which does not change the result"
            )
        with within_memory("reading ahead", remedy):
            return self._read(step)

    def _read(self, step: int) -> Batch:
        draws = [self._schedule.draw(step, index) for index in self._indices]
        pairs = [(draw.record, draw.region) for draw in draws]
        buffer = self._buffers.take()
        with naming_cases(self._reader, pairs):
            form = self._reader.fill_numbers(pairs, buffer.numpy())
        seeds = tuple(self._schedule.seed_of(step, index) for index in self._indices)
        return Batch(
            step=step,
            indices=tuple(self._indices),
            seeds=seeds,
            regions=_regions(buffer, form),
            tasks=torch.tensor([draw.task for draw in draws]),
            groups=torch.tensor([draw.group for draw in draws]),
            cases=torch.tensor([_number(draw.record.dataset, draw.record.id) for draw in draws]),
            patients=torch.tensor([_number(draw.record.dataset, draw.record.patient) for draw in draws]),
            digest=sum(_digest(seed, draw.region) for seed, draw in zip(seeds, draws, strict=True)),
        )


def _digest(seed: int, region: Region) -> int:
    """32 bits that stand for a sample."""
    place = (seed, region.dataset, region.case, region.channel, *region.start, *region.shape)
    return int(content_hash(place)[:8], 16)


@functools.lru_cache(maxsize=_NUMBERS)
def _number(*names: str) -> int:
    """63 bits that stand for names, on every machine the same."""
    return int(content_hash(names)[:16], 16) >> 1


@contextmanager
def naming_cases(reader: Reader, pairs: Pairs) -> Iterator[None]:
    """Inside, the pairs' regions are read. The store's own errors name the object; any other becomes one that
    names the case.
    """
    try:
        yield
    except HsslError:
        raise
    except Exception as failure:
        if is_out_of_memory(failure):
            raise
        for record, region in pairs:
            try:
                reader.region(record, region)
            except Exception as error:
                raise unreadable(record, error) from error
        raise


def unreadable(record: CaseRecord, error: Exception) -> StoreError:
    """The error of a case that cannot be read."""
    return StoreError(f"case {record.id!r} of dataset {record.dataset!r} cannot be read: {error}")
