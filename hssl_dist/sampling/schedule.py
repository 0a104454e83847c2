"""Which region sample `index` of step `step` sees: a function of (seed, step, index) alone."""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int32

from hssl_dist.augment.seeds import sample_seed, stream
from hssl_dist.config.pretrain import SamplingConfig
from hssl_dist.errors import ConfigError
from hssl_dist.records import TISSUE, CaseRecord, Manifest, Region, Shape
from hssl_dist.sampling.placement import draw_start
from hssl_dist.sampling.splits import without_test
from hssl_dist.store import CaseColumns, Names, case_columns

DRAWS_VERSION = 2
"""Of the way from (seed, step, index) to a region; 1 placed regions around annotated structures too."""

_STEPS = 16  # whose tasks are kept: a step's samples are drawn one after the other


@dataclass(frozen=True, slots=True)
class Draw:
    """A region to read, and the numbers of its task and group in the schedule's names."""

    region: Region
    record: CaseRecord
    task: int
    group: int


class Schedule:
    """Draws balanced over tasks, then patients, then cases, channels and positions.

    A global batch is cut into equal blocks of consecutive samples, as many as give each block at least
    `block_size` of them (one block if the batch is smaller), and each block comes from one task. The blocks
    of a step divide the tasks' probabilities among them evenly (systematic sampling), so a batch is as close
    to those as its number of blocks allows, and each block on its own follows them over the steps.

    Regions lie around tissue, never around what somebody has annotated: pretraining sees no label, and that
    of a patient that fine-tuning may not use least of all.

    Of the manifests it draws from those that the config names; the others are those of datasets whose test
    patients are left out, too.

    It holds numbers alone, a few bytes per case: a draw costs the same for any number of cases, and parses
    the record that it draws.
    """

    tasks: tuple[str, ...]
    groups: tuple[str, ...]
    blocks: int
    """How many a global batch has, each of one task."""

    def __init__(
        self, manifests: Mapping[str, Manifest], config: SamplingConfig, seed: int, global_batch: int
    ) -> None:
        self._names = names = _dataset_names(manifests, config)
        self.config, self.seed, self.global_batch = config, seed, global_batch
        self.region_shape = region_shape(config)
        self.blocks = max(1, global_batch // config.block_size)
        self._records = [manifests[name].cases for name in names]
        self._cases = _CaseTable(_eligible(manifests, names, config))
        if not self._cases.tasks:
            raise ConfigError(f"there is no case to draw from in {', '.join(names) or 'the store'}")
        self.tasks, self.groups = self._cases.tasks, self._cases.groups
        self._group_numbers = {name: number for number, name in enumerate(self.groups)}
        weights = list(itertools.accumulate(_weights(self.tasks, self._cases.task_sizes, config)))
        self.task_probabilities = tuple(
            (high - low) / weights[-1] for low, high in itertools.pairwise([0.0, *weights])
        )
        self._upper = [weight / weights[-1] for weight in weights[:-1]]
        self._turn_of = functools.lru_cache(maxsize=_STEPS)(self._draw_turn)

    def seed_of(self, step: int, index: int) -> int:
        """The seed of all that is random about a sample."""
        return sample_seed(self.seed, step, index)

    def draw(self, step: int, index: int) -> Draw:
        """What sample `index` (0 .. global_batch - 1) of step `step` sees."""
        task = self._task(step, index * self.blocks // self.global_batch)
        rng = stream(self.seed_of(step, index), "region")
        patients = self._cases.patients(task)
        cases = self._cases.of_patient(patients[rng.integers(len(patients))])
        dataset, place = self._cases.where(cases[rng.integers(len(cases))])
        record = self._records[dataset][place]
        region = Region(
            dataset=record.dataset,
            case=record.id,
            channel=int(rng.integers(len(record.modalities))),
            start=draw_start(record, self.region_shape, self.config.foreground, (TISSUE,), rng),
            shape=self.region_shape,
        )
        return Draw(region, record, task, self._group_numbers[record.group])

    def case_ids(self) -> dict[str, tuple[str, ...]]:
        """The cases it draws from by dataset, each by its id, sorted. It takes parsing their records."""
        return {
            name: tuple(sorted(records[place].id for place in self._cases.places(number)))
            for number, (name, records) in enumerate(zip(self._names, self._records, strict=True))
        }

    def _task(self, step: int, block: int) -> int:
        offset, turn = self._turn_of(step)
        place = ((block + turn) % self.blocks + offset) / self.blocks
        return bisect.bisect_right(self._upper, place)

    def _draw_turn(self, step: int) -> tuple[float, int]:
        """Where the first block of a step begins, and which block that is."""
        rng = stream(sample_seed(self.seed, step, 0), "tasks")
        return rng.random(), int(rng.integers(self.blocks))


def region_shape(config: SamplingConfig) -> Shape:
    """Shape `z y x` of the regions that two views are cut from."""
    z, y, x = (math.ceil(size * (1.0 + config.margin) - 1e-9) for size in config.patch_size)
    return z, y, x


def _weights(tasks: Sequence[str], sizes: Sequence[int], config: SamplingConfig) -> list[float]:
    """How often each task is drawn, up to a factor."""
    if unknown := sorted(set(config.task_weights) - set(tasks)):
        raise ConfigError(
            f"sampling.task_weights names {unknown[0]!r}; the tasks drawn are {', '.join(tasks)}"
        )
    return [
        config.task_weights.get(task, 1.0) * size**config.task_exponent
        for task, size in zip(tasks, sizes, strict=True)
    ]


def _dataset_names(manifests: Mapping[str, Manifest], config: SamplingConfig) -> list[str]:
    """The datasets to draw from, sorted."""
    for key in ("datasets", "exclude_test_of"):
        for name in getattr(config, key) or ():
            if name not in manifests:
                known = ", ".join(sorted(manifests)) or "no dataset"
                raise ConfigError(f"sampling.{key} names {name!r}; the store has {known}")
    return sorted(set(config.datasets or manifests))


@dataclass(frozen=True, slots=True)
class _Eligible:
    """The cases of a dataset to draw from: their places in its manifest, sorted by id, and its columns."""

    places: Int32[np.ndarray, " eligible"]
    columns: CaseColumns


def _eligible(
    manifests: Mapping[str, Manifest], names: Sequence[str], config: SamplingConfig
) -> list[_Eligible]:
    """Of the named datasets, when the test patients of all of the manifests are left out."""
    left: Mapping[str, Bool[np.ndarray, " _"]]
    if config.exclude_test is not None:
        left = dict(zip(manifests, without_test([*manifests.values()], config.exclude_test), strict=True))
    else:
        left = {name: np.ones(len(manifests[name].cases), bool) for name in names}
    columns = {name: case_columns(manifests[name].cases) for name in names}
    return [_Eligible(own.by_id[left[name][own.by_id]], own) for name, own in columns.items()]


class _CaseTable:
    """Cases of several datasets in order of task, dataset, patient and id, in arrays of numbers."""

    def __init__(self, datasets: Sequence[_Eligible]) -> None:
        self.tasks, tasks = _numbered([(part.columns.tasks, part.places) for part in datasets])
        self.groups, _ = _numbered([(part.columns.groups, part.places) for part in datasets])
        dataset = _joined([np.full(len(part.places), n, np.int32) for n, part in enumerate(datasets)])
        patient = _joined([part.columns.patients.numbers[part.places] for part in datasets])
        order = np.lexsort((patient, dataset, tasks))  # stable: within a patient, sorted by id
        tasks, patient = tasks[order], patient[order]
        self._dataset = dataset[order]
        self._place = _joined([part.places for part in datasets])[order]
        keys = np.stack((tasks, self._dataset, patient))
        begins = np.flatnonzero(np.any(keys[:, 1:] != keys[:, :-1], axis=0)) + 1
        self._patient_begins = np.concatenate(([0], begins, [len(order)])).astype(np.int32)
        numbers = np.arange(len(self.tasks) + 1)
        task_begins = np.searchsorted(tasks, numbers)
        self.task_sizes: list[int] = np.diff(task_begins).tolist()
        self._task_begins: list[int] = np.searchsorted(self._patient_begins[:-1], task_begins).tolist()

    def patients(self, task: int) -> range:
        """The patients of a task."""
        return range(self._task_begins[task], self._task_begins[task + 1])

    def of_patient(self, patient: int) -> range:
        """The cases of a patient."""
        return range(int(self._patient_begins[patient]), int(self._patient_begins[patient + 1]))

    def where(self, case: int) -> tuple[int, int]:
        """The number of a case's dataset, and its place in that dataset's manifest."""
        return int(self._dataset[case]), int(self._place[case])

    def places(self, dataset: int) -> list[int]:
        """The places of a dataset's cases in its manifest."""
        places: list[int] = self._place[self._dataset == dataset].tolist()
        return places


def _numbered(
    parts: Sequence[tuple[Names, Int32[np.ndarray, " _"]]],
) -> tuple[tuple[str, ...], Int32[np.ndarray, " case"]]:
    """The names of the eligible cases of all datasets, sorted, and the number of each case's."""
    used = [{names.values[number] for number in np.unique(names.numbers[places])} for names, places in parts]
    values = tuple(sorted(set().union(*used)))
    known = {name: number for number, name in enumerate(values)}
    numbers = [
        np.array([known.get(name, -1) for name in names.values], np.int32)[names.numbers[places]]
        for names, places in parts
    ]
    return values, _joined(numbers)


def _joined(parts: Sequence[Int32[np.ndarray, " _"]]) -> Int32[np.ndarray, " case"]:
    return np.concatenate([np.empty(0, np.int32), *parts])
