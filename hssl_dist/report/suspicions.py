"""What a person should look at in a preprocessed dataset before training on it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hssl_dist.records import CaseRecord, ManifestHeader

_NAMED_CASES = 5
_SPACING_FACTOR = 2.0
_ANISOTROPY = 3.0
_RARE_CLASS_SHARE = 0.5
_SMALL_VOLUME_SHARE = 0.02
_FEW_SLICES = 4

Check = Callable[["ManifestHeader", Sequence["CaseRecord"]], Iterator[str]]


def suspicions(header: ManifestHeader, records: Sequence[CaseRecord]) -> list[str]:
    """One sentence per oddity, empty for a clean dataset."""
    return [text for check in CHECKS for text in check(header, records)] if records else []


def _unlabelled(_: ManifestHeader, records: Sequence[CaseRecord]) -> Iterator[str]:
    if not any(record.labelled for record in records):
        yield "No case is labelled: the dataset serves pretraining only."


def _classes(header: ManifestHeader, records: Sequence[CaseRecord]) -> Iterator[str]:
    labelled = [record for record in records if record.labelled]
    for value, name in sorted(header.classes.items()) if labelled else ():
        having = [record for record in labelled if record.voxels.get(str(value), 0)]
        if not having:
            yield f"Class {value} ({name}) occurs in no labelled case."
            continue
        if len(having) < _RARE_CLASS_SHARE * len(labelled):
            yield f"Class {value} ({name}) occurs in only {len(having)} of {len(labelled)} labelled cases."
        median = statistics.median(record.voxels[str(value)] for record in having)
        tiny = [r.id for r in having if r.voxels[str(value)] < _SMALL_VOLUME_SHARE * median]
        if tiny:
            yield (
                f"Class {value} ({name}) has less than {_SMALL_VOLUME_SHARE:.0%} of its median "
                f"number of voxels in {_named(tiny)}."
            )


def _empty_labels(_: ManifestHeader, records: Sequence[CaseRecord]) -> Iterator[str]:
    empty = [
        record.id
        for record in records
        if record.labelled and not any(count for value, count in record.voxels.items() if value != "0")
    ]
    if empty:
        yield f"The label is empty in {_named(empty)}."


def _spacing(_: ManifestHeader, records: Sequence[CaseRecord]) -> Iterator[str]:
    outliers = [
        record.id
        for record in records
        if any(
            not 1 / _SPACING_FACTOR <= before / after <= _SPACING_FACTOR
            for before, after in zip(
                record.geometry.oriented_spacing_mm, record.geometry.spacing_mm, strict=True
            )
        )
    ]
    if outliers:
        yield f"The spacing was changed more than {_SPACING_FACTOR:g}-fold in {_named(outliers)}."


def _anisotropy(_: ManifestHeader, records: Sequence[CaseRecord]) -> Iterator[str]:
    spacing = records[0].geometry.spacing_mm
    ratio = max(spacing) / min(spacing)
    if ratio > _ANISOTROPY:
        yield (
            f"Stored voxels are {ratio:.1f} times as long along {'zyx'[spacing.index(max(spacing))]} as "
            "across it: use kernels and strides of 1 along that axis in the first stages."
        )


def _thin(_: ManifestHeader, records: Sequence[CaseRecord]) -> Iterator[str]:
    thin = [record.id for record in records if min(record.shape) < _FEW_SLICES]
    if thin:
        yield f"A side is shorter than {_FEW_SLICES} voxels in {_named(thin)}: patches are mostly padding."


def _equal_channels(_: ManifestHeader, records: Sequence[CaseRecord]) -> Iterator[str]:
    equal = [record.id for record in records if len(set(record.fingerprints)) < len(record.fingerprints)]
    if equal:
        yield f"Two channels are the same image in {_named(equal)}."


def _named(names: Sequence[str]) -> str:
    rest = len(names) - _NAMED_CASES
    text = ", ".join(names[:_NAMED_CASES])
    return f"{text} and {rest} more" if rest > 0 else text


CHECKS: tuple[Check, ...] = (
    _unlabelled,
    _classes,
    _empty_labels,
    _spacing,
    _anisotropy,
    _thin,
    _equal_channels,
)
