"""Which region sample `index` of step `step` sees: a function of (seed, step, index) alone."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from hssl_dist.augment.seeds import sample_seed, stream
from hssl_dist.config.pretrain import SamplingConfig
from hssl_dist.errors import ConfigError
from hssl_dist.records import CaseRecord, Manifest, Region, Shape
from hssl_dist.sampling.placement import draw_start
from hssl_dist.sampling.splits import without_test

Patients = tuple[tuple[CaseRecord, ...], ...]


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

    Construction is linear in the number of cases; a draw costs the same for any number of cases.
    """

    tasks: tuple[str, ...]
    groups: tuple[str, ...]

    def __init__(
        self, manifests: Mapping[str, Manifest], config: SamplingConfig, seed: int, global_batch: int
    ) -> None:
        cases = _eligible(manifests, config)
        self.tasks = tuple(sorted({case.task for case in cases}))
        self.groups = tuple(sorted({case.group for case in cases}))
        self.config, self.seed, self.global_batch = config, seed, global_batch
        self.region_shape = region_shape(config)
        self._blocks = max(1, global_batch // config.block_size)
        self._group_numbers = {name: number for number, name in enumerate(self.groups)}
        self._patients = _by_patient(cases, self.tasks)
        sizes = [sum(len(patient) for patient in patients) for patients in self._patients]
        weights = list(itertools.accumulate(size**config.task_exponent for size in sizes))
        self.task_probabilities = tuple(
            (high - low) / weights[-1] for low, high in itertools.pairwise([0.0, *weights])
        )
        self._upper = [weight / weights[-1] for weight in weights[:-1]]

    def seed_of(self, step: int, index: int) -> int:
        """The seed of all that is random about a sample."""
        return sample_seed(self.seed, step, index)

    def draw(self, step: int, index: int) -> Draw:
        """What sample `index` (0 .. global_batch - 1) of step `step` sees."""
        task = self._task(step, index * self._blocks // self.global_batch)
        rng = stream(self.seed_of(step, index), "region")
        patients = self._patients[task]
        cases = patients[rng.integers(len(patients))]
        record = cases[rng.integers(len(cases))]
        region = Region(
            dataset=record.dataset,
            case=record.id,
            channel=int(rng.integers(len(record.modalities))),
            start=draw_start(record, self.region_shape, self.config.foreground, rng),
            shape=self.region_shape,
        )
        return Draw(region, record, task, self._group_numbers[record.group])

    def _task(self, step: int, block: int) -> int:
        rng = stream(sample_seed(self.seed, step, 0), "tasks")
        offset, turn = rng.random(), int(rng.integers(self._blocks))
        place = ((block + turn) % self._blocks + offset) / self._blocks
        return bisect.bisect_right(self._upper, place)


def region_shape(config: SamplingConfig) -> Shape:
    """Shape `z y x` of the regions that two views are cut from."""
    z, y, x = (math.ceil(size * (1.0 + config.margin) - 1e-9) for size in config.patch_size)
    return z, y, x


def _eligible(manifests: Mapping[str, Manifest], config: SamplingConfig) -> list[CaseRecord]:
    names = config.datasets or tuple(sorted(manifests))
    for name in names:
        if name not in manifests:
            known = ", ".join(sorted(manifests)) or "no dataset"
            raise ConfigError(f"sampling.datasets names {name!r}; the store has {known}")
    chosen = [manifests[name] for name in dict.fromkeys(names)]
    if config.exclude_test is not None:
        cases = without_test(chosen, config.exclude_test)
    else:
        cases = [case for manifest in chosen for case in manifest.cases]
    if not cases:
        raise ConfigError(f"there is no case to draw from in {', '.join(names) or 'the store'}")
    return cases


def _by_patient(cases: list[CaseRecord], tasks: tuple[str, ...]) -> tuple[Patients, ...]:
    """For each task its patients, for each of them the cases; sorted, whatever the manifests' order."""
    table: dict[str, dict[tuple[str, str], list[CaseRecord]]] = {task: {} for task in tasks}
    for case in sorted(cases, key=lambda case: (case.dataset, case.id)):
        table[case.task].setdefault((case.dataset, case.patient), []).append(case)
    return tuple(tuple(tuple(table[task][patient]) for patient in sorted(table[task])) for task in tasks)
