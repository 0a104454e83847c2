"""Batches of labelled patches for fine-tuning, read ahead of the training step."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from hssl_dist.augment.seeds import sample_seed, stream
from hssl_dist.errors import ConfigError, HsslError
from hssl_dist.memory import is_out_of_memory
from hssl_dist.records import CaseRecord, Region, Shape
from hssl_dist.sampling.loader import naming_cases, unreadable
from hssl_dist.sampling.placement import annotated, draw_start
from hssl_dist.sampling.prefetch import read_ahead

if TYPE_CHECKING:
    from hssl_dist.store import Reader

DRAWS_VERSION = 2
"""Of the way from (seed, step, index) to a patch; 1 took tissue for one more class."""

_LABELS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class LabelledBatch:
    """One step's labelled patches, on the CPU; `seeds` are for their augmentation."""

    step: int
    seeds: tuple[int, ...]
    image: Float[Tensor, "batch channel z y x"]
    label: UInt8[Tensor, "batch z y x"]
    wait_s: float = 0.0


class SupervisedLoader:
    """Patches drawn evenly over patients, then over their cases, then around a class or anywhere.

    A patch lies around an annotated structure with probability `foreground`, its class drawn evenly from
    those the case has. What sample i of step t is depends on (seed, t, i) alone. `pin_memory` as in
    `PretrainingLoader`.
    """

    def __init__(
        self,
        records: Sequence[CaseRecord],
        reader: Reader,
        patch_size: Shape,
        batch_size: int,
        foreground: float,
        seed: int,
        prefetch_batches: int = 2,
        *,
        pin_memory: bool = False,
    ) -> None:
        self._records, self._patients = records, _by_patient(records)
        self._reader = reader
        self._patch_size, self._batch_size = patch_size, batch_size
        self._foreground, self._seed, self._depth = foreground, seed, prefetch_batches
        self._pin_memory = pin_memory

    def batches(self, start_step: int, stop_step: int) -> Generator[LabelledBatch]:
        """Batches of steps `start_step` to `stop_step - 1`, read ahead; close it if it is not used up.

        Raises StoreError, naming the case, if a patch cannot be read.
        """
        for batch, wait_s in read_ahead(self._read, range(start_step, stop_step), self._depth):
            yield replace(batch, wait_s=wait_s)

    def draw(self, step: int, index: int) -> tuple[CaseRecord, list[Region]]:
        """The case of sample `index` (0 .. batch_size - 1) of step `step`, and its patch in each channel."""
        return self._draw(sample_seed(self._seed, step, index))

    def _read(self, step: int) -> LabelledBatch:
        seeds = tuple(sample_seed(self._seed, step, index) for index in range(self._batch_size))
        draws = [self._draw(seed) for seed in seeds]
        pairs = [(record, region) for record, regions in draws for region in regions]
        image = torch.empty((len(pairs), *self._patch_size), pin_memory=self._pin_memory)
        label = torch.empty((len(draws), *self._patch_size), dtype=torch.uint8, pin_memory=self._pin_memory)

        def read_label(place: int) -> None:
            record, regions = draws[place]
            label[place] = torch.from_numpy(_read_label(self._reader, record, regions[0]))

        with ThreadPoolExecutor(_LABELS_AT_ONCE, thread_name_prefix="label") as pool:
            labels = [pool.submit(read_label, place) for place in range(len(draws))]
            with naming_cases(self._reader, pairs):
                self._reader.fill(pairs, image.numpy())
            for read in labels:
                read.result()
        return LabelledBatch(step, seeds, image.view(len(draws), -1, *self._patch_size), label)

    def _draw(self, seed: int) -> tuple[CaseRecord, list[Region]]:
        rng = stream(seed, "patch")
        cases = self._patients[rng.integers(len(self._patients))]
        record = self._records[cases[rng.integers(len(cases))]]
        start = draw_start(record, self._patch_size, self._foreground, annotated(record), rng)
        return record, [
            Region(record.dataset, record.id, channel, start, self._patch_size)
            for channel in range(len(record.modalities))
        ]


def _read_label(reader: Reader, record: CaseRecord, region: Region) -> UInt8[np.ndarray, "z y x"]:
    try:
        return reader.label_region(record, region)
    except HsslError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise unreadable(record, error) from error


def _by_patient(records: Sequence[CaseRecord]) -> list[list[int]]:
    """For each patient the places of its cases, sorted, whatever the order of `records`."""
    if not records:
        raise ConfigError("there is no labelled case to train on; raise labels.fraction or check the split")
    channels = records[0].modalities
    patients: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for place, record in enumerate(records):
        if not record.labelled:
            raise ConfigError(f"case {record.id!r} of dataset {record.dataset!r} has no label to train on")
        if record.modalities != channels:
            raise ConfigError(
                f"case {record.id!r} has the channels {record.modalities}, {records[0].id!r} has "
                f"{channels}; a network takes one set of channels"
            )
        patients.setdefault((record.dataset, record.patient), []).append((record.id, place))
    return [[place for _, place in sorted(patients[patient])] for patient in sorted(patients)]
