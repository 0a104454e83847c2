"""Objects against their recorded sizes and hashes: nothing lost or damaged goes unnoticed."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hssl_dist import files
from hssl_dist.errors import CorruptError, StoreError
from hssl_dist.records import StoredObject
from hssl_dist.store import layout
from hssl_dist.store.manifest import read_manifest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import NoReturn

    from hssl_dist.records import CaseRecord

_PARALLEL = 8


def describe(path: str, data: bytes) -> StoredObject:
    """What is recorded of an object."""
    return StoredObject(path=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def find(record: CaseRecord, path: str) -> StoredObject:
    """The object of a case at `path` below its group. Raises StoreError if the record lists none."""
    full = f"{record.image_path}/{path}"
    for item in record.objects:
        if item.path == full:
            return item
    raise StoreError(f"the record of case {record.id!r} of {record.dataset!r} lists no object {full}")


def fetch(root: str, dataset: str, item: StoredObject) -> bytes:
    """The bytes of an object. Raises CorruptError if they are not what was recorded."""
    url = files.join(layout.dataset_url(root, dataset), item.path)
    try:
        data = files.read(url)
    except FileNotFoundError:
        raise _corrupt(url, "is missing") from None
    if len(data) != item.size_bytes:
        raise _corrupt(url, f"has {len(data)} bytes, its record says {item.size_bytes}")
    if hashlib.sha256(data).hexdigest() != item.sha256:
        raise _corrupt(url, "does not have the recorded SHA-256")
    return data


@contextmanager
def explained(root: str, record: CaseRecord, array: str) -> Iterator[None]:
    """Inside, a reader's ValueError becomes what is behind it; see `explain`."""
    try:
        yield
    except ValueError as error:
        explain(root, record, array, error)


def explain(root: str, record: CaseRecord, array: str, error: Exception) -> NoReturn:
    """Raise what is behind a reader's error: CorruptError naming the array's lost or damaged object.

    Raises StoreError with the reader's own words if all objects are as recorded (the storage failed us).
    """
    prefix = f"{record.image_path}/{array}/"
    items = [item for item in record.objects if item.path.startswith(prefix)]
    _check_all(root, record.dataset, items)
    url = files.join(layout.dataset_url(root, record.dataset), prefix)
    said = str(error).partition("\n")[0]
    raise StoreError(f"{url} could not be read though its objects are intact: {said}") from error


def verify(root: str, dataset: str) -> int:
    """Check every object of every case of a dataset; returns how many. Raises CorruptError naming the first
    that is missing or damaged.
    """
    items = [item for record in read_manifest(root, dataset).cases for item in record.objects]
    _check_all(root, dataset, items)
    return len(items)


def _check_all(root: str, dataset: str, items: Sequence[StoredObject]) -> None:
    """Raise CorruptError naming the first object that is missing or damaged."""
    with ThreadPoolExecutor(_PARALLEL) as pool:
        for _ in pool.map(lambda item: len(fetch(root, dataset, item)), items):
            pass


def _corrupt(url: str, what: str) -> CorruptError:
    return CorruptError(f"{url} {what}; remove its case's commit record and preprocess the dataset again")
