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

from hssl_dist.config.finetune import LabelsConfig
from hssl_dist.config.parts import SplitConfig
from hssl_dist.errors import ConfigError
from hssl_dist.records import CaseRecord, Manifest


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
    first = _first_alike(case for case in manifest.cases if case.labelled)
    parts = split_patients(first.values(), split)
    return Split(
        *(
            tuple(sorted(patient for patient in first if first[patient] in part))
            for part in map(frozenset, (parts.train, parts.validation, parts.test))
        )
    )


def without_test(manifests: Sequence[Manifest], split: SplitConfig) -> list[CaseRecord]:
    """The cases left when each dataset's test patients are held out, and with them every case, of whatever
    dataset, that shows one of their scans.
    """
    held_out = {
        (manifest.dataset, name) for manifest in manifests for name in split_manifest(manifest, split).test
    }
    cases = [case for manifest in manifests for case in manifest.cases]
    scans = {mark for case in cases if (case.dataset, case.patient) in held_out for mark in case.fingerprints}
    return [
        case
        for case in cases
        if (case.dataset, case.patient) not in held_out and scans.isdisjoint(case.fingerprints)
    ]


def labelled_cases(manifest: Manifest, patients: Iterable[str]) -> tuple[CaseRecord, ...]:
    """The labelled cases of these patients, in the manifest's order."""
    wanted = set(patients)
    return tuple(case for case in manifest.cases if case.labelled and case.patient in wanted)


def label_subset(train: Iterable[str], labels: LabelsConfig) -> tuple[str, ...]:
    """A share of the training patients, sorted: at least one, rounded half up; smaller shares are nested."""
    order = _ordered(train, f"labels/{labels.seed}")
    return tuple(sorted(order[: _share(labels.fraction, len(order))]))


def _first_alike(cases: Iterable[CaseRecord]) -> dict[str, str]:
    """For each patient the first, by name, of all he shares scans with, be it through others."""
    first: dict[str, str] = {}
    owner: dict[str, str] = {}

    def root(patient: str) -> str:
        while first[patient] != patient:
            patient = first[patient]
        return patient

    for case in cases:
        first.setdefault(case.patient, case.patient)
        for mark in case.fingerprints:
            one, other = sorted((root(case.patient), root(owner.setdefault(mark, case.patient))))
            first[other] = one
    return {patient: root(patient) for patient in first}


def _ordered(patients: Iterable[str], salt: str) -> list[str]:
    return sorted(set(patients), key=lambda name: hashlib.blake2b(f"{salt}/{name}".encode()).digest())


def _share(fraction: float, total: int) -> int:
    if fraction == 0.0 or total == 0:
        return 0
    return max(1, math.floor(fraction * total + 0.5))
