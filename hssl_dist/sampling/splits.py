"""Patient-level splits and label fractions.

Patients are put in an order given by a hash of seed and name. Test patients are taken from its front,
validation patients from its back, training patients are those between: no patient is ever divided, and when
patients join a dataset the others keep their order, so at the most a few move between training and a
neighbouring part. Patients whose cases share a scan are one patient to a split, whatever their names.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from jaxtyping import Bool, Int64

from hssl_dist.config.finetune import LabelsConfig
from hssl_dist.config.parts import SplitConfig
from hssl_dist.errors import ConfigError
from hssl_dist.records import CaseRecord, Manifest
from hssl_dist.store import CaseColumns, case_columns


@dataclass(frozen=True, slots=True)
class Split:
    """Disjoint sets of patients, each sorted by name."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def split_patients(patients: Iterable[str], split: SplitConfig) -> Split:
    """Divide patients into parts of the configured shares, rounded to the nearest whole number (half up).

    A part with a share above zero gets at least one patient. With fewer patients than such parts, training
    comes first, then test, then validation. Raises ConfigError if the shares exceed 1.
    """
    train_share = round(1.0 - split.test - split.validation, 9)
    if train_share < 0.0:
        raise ConfigError(
            f"split.test {split.test} and split.validation {split.validation} add up to more than 1; "
            "lower one of them"
        )
    order = _ordered(patients, f"split/{split.seed}")
    total = len(order)
    rest = total - 1 if total and train_share > 0.0 else total
    validation = _share(split.validation, total)
    test = min(_share(split.test, total), max(rest - validation, 1), rest)
    validation = min(validation, rest - test)
    stop = total - validation
    return Split(*(tuple(sorted(part)) for part in (order[test:stop], order[stop:], order[:test])))


def split_manifest(manifest: Manifest, split: SplitConfig) -> Split:
    """The split of a dataset's labelled patients: what fine-tuning trains, validates and tests on.

    Patients who share a scan stay together, in the place of the first of them by name.
    """
    columns = case_columns(manifest.cases)
    names, first = columns.patients.values, _first_alike(columns)
    parts = split_patients({names[number] for number in first.values()}, split)
    return Split(
        *(
            tuple(names[patient] for patient in first if names[first[patient]] in part)
            for part in map(frozenset, (parts.train, parts.validation, parts.test))
        )
    )


def without_test(manifests: Sequence[Manifest], split: SplitConfig) -> list[Bool[np.ndarray, " case"]]:
    """Which cases of each dataset are left when its test patients are held out, and with them every case, of
    whatever dataset, that shows one of their scans.
    """
    columns = [case_columns(manifest.cases) for manifest in manifests]
    held_out = [
        _cases_of(own, split_manifest(manifest, split).test)
        for own, manifest in zip(columns, manifests, strict=True)
    ]
    scans = [own.scans[held[own.scan_cases]] for own, held in zip(columns, held_out, strict=True)]
    tested = np.concatenate([np.empty(0, np.uint64), *scans])
    for own, held in zip(columns, held_out, strict=True):
        held[own.scan_cases[np.isin(own.scans, tested)]] = True
    return [~held for held in held_out]


def labelled_patients(manifest: Manifest) -> tuple[str, ...]:
    """The patients with a labelled case, sorted."""
    columns = case_columns(manifest.cases)
    numbers = np.unique(columns.patients.numbers[columns.labelled])
    return tuple(columns.patients.values[number] for number in numbers)


def labelled_cases(manifest: Manifest, patients: Iterable[str]) -> Sequence[CaseRecord]:
    """The labelled cases of these patients, in the manifest's order; each is parsed when asked for."""
    columns = case_columns(manifest.cases)
    return ChosenCases(manifest.cases, np.flatnonzero(columns.labelled & _cases_of(columns, patients)))


class ChosenCases(Sequence[CaseRecord]):
    """Some cases of a manifest, by their places in it."""

    def __init__(self, cases: Sequence[CaseRecord], places: Int64[np.ndarray, " chosen"]) -> None:
        self._cases, self._places = cases, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, key: int) -> CaseRecord: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[CaseRecord, ...]: ...
    def __getitem__(self, key: int | slice) -> CaseRecord | tuple[CaseRecord, ...]:
        if isinstance(key, slice):
            return tuple(self._cases[place] for place in self._places[key])
        return self._cases[int(self._places[key])]


def label_subset(train: Iterable[str], labels: LabelsConfig) -> tuple[str, ...]:
    """A share of the training patients, sorted: at least one, rounded half up; smaller shares are nested."""
    order = _ordered(train, f"labels/{labels.seed}")
    return tuple(sorted(order[: _share(labels.fraction, len(order))]))


def _cases_of(columns: CaseColumns, patients: Iterable[str]) -> Bool[np.ndarray, " case"]:
    """Which cases are of these patients."""
    wanted = set(patients)
    chosen = np.array([name in wanted for name in columns.patients.values], bool)
    cases: Bool[np.ndarray, " case"] = chosen[columns.patients.numbers]
    return cases


def _first_alike(columns: CaseColumns) -> dict[int, int]:
    """For each patient with a label, sorted, the first of all he shares a labelled case's scan with, be it
    through others. Patients by number, which is by name.
    """
    first = {int(number): int(number) for number in np.unique(columns.patients.numbers[columns.labelled])}

    def root(patient: int) -> int:
        while first[patient] != patient:
            patient = first[patient]
        return patient

    labelled = columns.labelled[columns.scan_cases]
    scans, owners = columns.scans[labelled], columns.patients.numbers[columns.scan_cases[labelled]]
    order = np.argsort(scans, kind="stable")
    scans, owners = scans[order], owners[order]
    for place in np.flatnonzero(scans[1:] == scans[:-1]):
        one, other = sorted((root(int(owners[place])), root(int(owners[place + 1]))))
        first[other] = one
    return {patient: root(patient) for patient in first}


def _ordered(patients: Iterable[str], salt: str) -> list[str]:
    return sorted(set(patients), key=lambda name: hashlib.blake2b(f"{salt}/{name}".encode()).digest())


def _share(fraction: float, total: int) -> int:
    if fraction == 0.0 or total == 0:
        return 0
    return max(1, math.floor(fraction * total + 0.5))
