"""Patient-level splits and label fractions.

Patients are put in an order given by a hash of seed and name. By shares, test patients are taken from its
front, validation patients from its back, training patients are those between: no patient is ever divided, and
when patients join a dataset the others keep their order, so at the most a few move between training and a
neighbouring part. Patients whose cases share a scan are one patient to a split, whatever their names.

Folds cut the same order, or what the test patients leave of it, into k parts of equal size:

    shares             | test |            train           | val |
    fold 0 of test     | test |            train           | val |     `validation` as a share of all
    fold 1 of test     | val | test |            train           |     those before the fold, cyclically
    fold 0 of val.     | test |               train        | val |     folds are counted from the back
    fold 1 of val.     | test |          train       | val |     |

so fold 0 of 5 is the split with `test` 0.2 (up to rounding), and each patient is tested, or validated on, in
one fold alone. The label subsets of a fold are nested as those of any training part.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from jaxtyping import Bool, Int64, Integer, UInt64

from hssl_dist.config.finetune import LabelsConfig
from hssl_dist.config.parts import SplitConfig
from hssl_dist.errors import ConfigError
from hssl_dist.records import CaseRecord, Manifest
from hssl_dist.sampling.split_files import count_patients, read_fixed_split
from hssl_dist.store import CaseColumns, case_columns

STUDY_FRACTIONS = (0.05, 0.1, 0.25, 1.0)
"""Shares of the labels that label-efficiency studies compare."""


@dataclass(frozen=True, slots=True)
class Split:
    """Disjoint sets of patients, each sorted by name."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def split_patients(patients: Iterable[str], split: SplitConfig) -> Split:
    """Divide patients by the config's shares, or by its fold and the share of the other part.

    Shares are rounded to the nearest whole number (half up); a part with a share above zero gets at least one
    patient. With fewer patients than such parts, training comes first, then test, then validation. Raises
    ConfigError if the shares exceed 1, or there are fewer patients than folds.
    """
    order = _ordered(patients, f"split/{split.seed}")
    return _by_shares(order, split) if split.folds is None else _by_fold(order, split, split.folds)


def _by_shares(order: list[str], split: SplitConfig) -> Split:
    train_share = round(1.0 - split.test - split.validation, 9)
    if train_share < 0.0:
        raise ConfigError(
            f"split.test {split.test} and split.validation {split.validation} add up to more than 1; "
            "lower one of them"
        )
    total = len(order)
    rest = total - 1 if total and train_share > 0.0 else total
    validation = _share(split.validation, total)
    test = min(_share(split.test, total), max(rest - validation, 1), rest)
    validation = min(validation, rest - test)
    stop = total - validation
    return _sorted_parts(order[test:stop], order[stop:], order[:test])


def _by_fold(order: list[str], split: SplitConfig, folds: int) -> Split:
    """One fold is a part; the share of the other set-aside part leaves at least one patient to train on."""
    if split.fold_part == "test":
        start, stop = _fold_bounds(len(order), split.fold, folds)
        rest = order[stop:] + order[:start]
        kept = len(rest) - min(_share(split.validation, len(order)), len(rest) - 1)
        return _sorted_parts(rest[:kept], rest[kept:], order[start:stop])
    test = min(_share(split.test, len(order)), max(len(order) - folds, 0))
    rest = order[test:][::-1]
    start, stop = _fold_bounds(len(rest), split.fold, folds)
    return _sorted_parts(rest[:start] + rest[stop:], rest[start:stop], order[:test])


def _fold_bounds(total: int, fold: int, folds: int) -> tuple[int, int]:
    """First patient of a fold, and of the next; sizes differ by one at most, the larger ones come first."""
    if total < folds:
        raise ConfigError(f"split.folds is {folds}, but there are {total} patients to fold; lower it")
    size, larger = divmod(total, folds)
    start = fold * size + min(fold, larger)
    return start, start + size + (fold < larger)


def _sorted_parts(train: list[str], validation: list[str], test: list[str]) -> Split:
    return Split(tuple(sorted(train)), tuple(sorted(validation)), tuple(sorted(test)))


def split_manifest(manifest: Manifest, split: SplitConfig) -> Split:
    """The split of a dataset's labelled patients: what fine-tuning trains, validates and tests on.

    All parts are empty where nobody has a label. Patients who share a scan stay together, in the place of the
    first of them by name; a file that divides them is refused with ConfigError, as is a dataset with fewer
    patients than folds. Raises what `read_fixed_split` raises, too.
    """
    columns = case_columns(manifest.cases)
    names, first = columns.patients.values, _first_alike(columns)
    if split.file is not None:
        return _by_file(manifest.dataset, {names[one]: names[first[one]] for one in first}, split.file)
    if not first:
        return Split((), (), ())
    apart = {names[number] for number in first.values()}
    if split.folds is not None and len(apart) < split.folds:
        raise ConfigError(
            f"split.folds is {split.folds}, but dataset {manifest.dataset!r} has {len(apart)} labelled "
            "patients to fold, counting those who share scans as one; lower it, or leave this dataset out"
        )
    parts = split_patients(apart, split)
    return Split(
        *(
            tuple(names[patient] for patient in first if names[first[patient]] in part)
            for part in map(frozenset, (parts.train, parts.validation, parts.test))
        )
    )


def _by_file(dataset: str, alike: Mapping[str, str], url: str) -> Split:
    """The file's split; `alike` maps each labelled patient to the first he shares a scan with."""
    fixed = read_fixed_split(url, dataset, alike)
    parts = {name: part for part, names in fixed.model_dump().items() for name in names}
    for name, other in alike.items():
        if parts[name] != parts[other]:
            raise ConfigError(
                f"split.file {url} divides {count_patients(sorted((other, name)))} who share a scan in "
                f"dataset {dataset!r} into {parts[other]} and {parts[name]}; put them into one part"
            )
    return _sorted_parts(list(fixed.train), list(fixed.validation), list(fixed.test))


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


def scans_of(manifest: Manifest, patients: Iterable[str]) -> UInt64[np.ndarray, " scan"]:
    """The scans of all cases of these patients, with and without a label, as `CaseColumns.scans` has them."""
    columns = case_columns(manifest.cases)
    scans: UInt64[np.ndarray, " scan"] = columns.scans[_cases_of(columns, patients)[columns.scan_cases]]
    return scans


def patients_showing(manifest: Manifest, scans: UInt64[np.ndarray, " scan"]) -> frozenset[str]:
    """The patients of whom a case, with or without a label, shows one of these scans."""
    columns = case_columns(manifest.cases)
    return _patients_of(columns, columns.scan_cases[np.isin(columns.scans, scans)])


def patients_unmarked(manifest: Manifest) -> frozenset[str]:
    """The patients of whom a case has no fingerprint: whether its scan is another's cannot be told."""
    columns = case_columns(manifest.cases)
    return _patients_of(columns, np.setdiff1d(np.arange(len(columns.labelled)), columns.scan_cases))


def labelled_patients(manifest: Manifest) -> tuple[str, ...]:
    """The patients with a labelled case, sorted."""
    columns = case_columns(manifest.cases)
    numbers = np.unique(columns.patients.numbers[columns.labelled])
    return tuple(columns.patients.values[number] for number in numbers)


def labelled_cases(manifest: Manifest, patients: Iterable[str]) -> Sequence[CaseRecord]:
    """The labelled cases of these patients, in the manifest's order; each is parsed when asked for."""
    columns = case_columns(manifest.cases)
    return ChosenCases(manifest.cases, np.flatnonzero(columns.labelled & _cases_of(columns, patients)))


def all_cases(manifest: Manifest, patients: Iterable[str]) -> Sequence[CaseRecord]:
    """The same with those that have no label."""
    return ChosenCases(manifest.cases, np.flatnonzero(_cases_of(case_columns(manifest.cases), patients)))


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
    order = label_order(train, labels.seed)
    return tuple(sorted(order[: _share(labels.fraction, len(order))]))


def label_order(train: Iterable[str], seed: int) -> list[str]:
    """Training patients in the order in which a growing share takes them: each subset is a start of it."""
    return _ordered(train, f"labels/{seed}")


def nested_sizes(train: Sequence[str], labels: LabelsConfig) -> dict[float, int]:
    """Patients of the subset of each share that studies use, and of the config's own; each is in the next."""
    shares = sorted({*STUDY_FRACTIONS, labels.fraction})
    return {share: _share(share, len(set(train))) for share in shares}


def _cases_of(columns: CaseColumns, patients: Iterable[str]) -> Bool[np.ndarray, " case"]:
    """Which cases are of these patients."""
    wanted = set(patients)
    chosen = np.array([name in wanted for name in columns.patients.values], bool)
    cases: Bool[np.ndarray, " case"] = chosen[columns.patients.numbers]
    return cases


def _patients_of(columns: CaseColumns, cases: Integer[np.ndarray, " some"]) -> frozenset[str]:
    return frozenset(columns.patients.values[number] for number in np.unique(columns.patients.numbers[cases]))


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
