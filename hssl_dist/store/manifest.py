"""Manifests, commit records and quarantine records: what a store says it holds.

All are sealed files: a manifest of a header line and one line per case sorted by id, a record of one line.
Nothing in a manifest depends on when or where it was written: equal stores have byte-identical manifests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from hssl_dist import files
from hssl_dist.errors import CorruptError, MissingError
from hssl_dist.records import CaseRecord, Manifest, ManifestHeader, Quarantined, Record
from hssl_dist.store import layout
from hssl_dist.store.case_lines import open_manifest
from hssl_dist.store.sealed import seal, unseal

SomeRecord = TypeVar("SomeRecord", bound=Record)


# ------------------------------------------------------------------------------------------------- manifests


def list_datasets(root: str) -> list[str]:
    """Names of the datasets that have a manifest, sorted."""
    names = [name for name in files.listing(root) if not name.startswith(".")]
    return [name for name in names if files.exists(layout.manifest_url(root, name))]


def read_manifest(root: str, dataset: str) -> Manifest:
    """The committed cases of a dataset; what is promised of them when is said in `store.case_lines`.

    Raises MissingError if there is no manifest, CorruptError if its bytes are not as they were written.
    """
    url = layout.manifest_url(root, dataset)
    try:
        return open_manifest(url)
    except FileNotFoundError:
        raise MissingError(f"no manifest at {url}; preprocess the dataset {dataset!r} first") from None


def read_whole_manifest(root: str, dataset: str) -> Manifest:
    """`read_manifest` with all records in memory: a damaged one is met here, not when it is asked for."""
    manifest = read_manifest(root, dataset)
    return replace(manifest, cases=tuple(manifest.cases))


def read_manifests(root: str, datasets: Sequence[str] = ()) -> dict[str, Manifest]:
    """Manifests by dataset, of those named or of all there are. Raises MissingError if there is none."""
    names = datasets or list_datasets(root)
    if not names:
        raise MissingError(f"no dataset in the store {root}; run `hssl preprocess` first")
    return {name: read_manifest(root, name) for name in names}


def write_manifest(root: str, header: ManifestHeader, cases: Iterable[CaseRecord]) -> Manifest:
    """Put a dataset's manifest in one go; left untouched if it already is the same, byte for byte."""
    url = layout.manifest_url(root, header.dataset)
    ordered = sorted(cases, key=lambda record: record.id)
    data = seal((header, *ordered))
    digest = hashlib.sha256(data).hexdigest()
    if not files.exists(url) or files.sha256(url) != (digest, len(data)):
        files.write(url, data)
    return Manifest(header, tuple(ordered), digest)


def withdraw(root: str, manifest: Manifest, case_ids: Iterable[str]) -> Manifest:
    """Take cases out of a manifest before their objects change, so that it never lists a torn case."""
    leaving = set(case_ids)
    return write_manifest(root, manifest.header, (case for case in manifest.cases if case.id not in leaving))


# --------------------------------------------------------------------------------- commit records, quarantine


def write_record(root: str, record: CaseRecord) -> None:
    """Commit a case, after all of its objects are there."""
    files.write(layout.record_url(root, record.dataset, record.id), seal((record,)))


def recorded_cases(root: str, dataset: str) -> set[str]:
    """Ids of the cases that have a commit record, also one of before records were sealed (`.json`)."""
    return {name.rpartition(".")[0] for name in files.listing(layout.records_url(root, dataset))}


def read_records(root: str, dataset: str, case_ids: Iterable[str]) -> dict[str, CaseRecord]:
    """Those of the cases that are committed, by id."""
    folder = layout.records_url(root, dataset)
    wanted = sorted(
        {f"{layout.check_name(case_id)}.jsonl" for case_id in case_ids} & set(files.listing(folder))
    )
    records = [_read_record(files.join(folder, name), CaseRecord) for name in wanted]
    return {record.id: record for record in records}


def remove_case(root: str, dataset: str, case_id: str) -> None:
    """Remove a case that no manifest lists: its commit record first, then its objects."""
    files.remove(layout.record_url(root, dataset, case_id))
    files.remove(files.join(layout.dataset_url(root, dataset), layout.case_folder(case_id)))


def write_quarantined(root: str, dataset: str, quarantined: Quarantined) -> None:
    """Remember that, and why, a case could not be stored."""
    files.write(_quarantined_url(root, dataset, quarantined.id), seal((quarantined,)))


def read_quarantine(root: str, dataset: str) -> dict[str, Quarantined]:
    """The quarantined cases of a dataset, by id."""
    folder = layout.quarantine_url(root, dataset)
    names = [name for name in files.listing(folder) if name.endswith(".jsonl") and not name.startswith(".")]
    records = [_read_record(files.join(folder, name), Quarantined) for name in names]
    return {record.id: record for record in records}


def release(root: str, dataset: str, case_id: str) -> None:
    """Forget that a case was quarantined."""
    files.remove(_quarantined_url(root, dataset, case_id))


def _quarantined_url(root: str, dataset: str, case_id: str) -> str:
    return files.join(layout.quarantine_url(root, dataset), f"{layout.check_name(case_id)}.jsonl")


def _read_record(url: str, kind: type[SomeRecord]) -> SomeRecord:
    try:
        (line,) = unseal(url, files.read(url))
        return kind.model_validate_json(line)
    except (CorruptError, ValueError) as error:
        raise CorruptError(f"{url} is no whole {kind.__name__}; remove it and preprocess again") from error
