"""Putting a case into a store: objects first, the commit record last."""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hssl_dist import files
from hssl_dist.errors import StoreError
from hssl_dist.store import layout
from hssl_dist.store.encoding import encode_case
from hssl_dist.store.manifest import remove_case, write_record
from hssl_dist.store.objects import describe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hssl_dist.config.preprocess import StorageConfig
    from hssl_dist.records import CaseRecord, Volume

_PARALLEL = 8


@dataclass(frozen=True, slots=True)
class EncodedCase:
    """A case that only has to be put: its record with its objects, and these by path below the dataset."""

    record: CaseRecord
    data: Mapping[str, bytes]


def write_case(
    root: str, record: CaseRecord, volume: Volume, classes: Mapping[int, str], storage: StorageConfig
) -> CaseRecord:
    """Write a case anew and commit it: `encode`, then `commit`."""
    return commit(root, encode(record, volume, classes, storage))


def encode(
    record: CaseRecord, volume: Volume, classes: Mapping[int, str], storage: StorageConfig
) -> EncodedCase:
    """A case's objects in memory. `volume` is prepared (normalised, of `record.shape`).

    Raises InputError if the volume holds values that cannot be stored.
    """
    folder = layout.case_folder(record.id)
    data = {
        f"{folder}/{path}": blob for path, blob in encode_case(record.id, volume, classes, storage).items()
    }
    objects = tuple(describe(path, blob) for path, blob in data.items())
    return EncodedCase(record.model_copy(update={"objects": objects}), data)


def commit(root: str, case: EncodedCase) -> CaseRecord:
    """Put a case's objects, then its record, which it returns.

    The manifest must not list the case meanwhile (`withdraw`). Killed at any point, the case either is as it
    was, or does not exist. Raises StoreError if the storage refuses.
    """
    record = case.record
    base = layout.dataset_url(root, record.dataset)
    try:
        remove_case(root, record.dataset, record.id)
        pool = _pool(os.getpid())
        writes = [pool.submit(files.write, files.join(base, path), blob) for path, blob in case.data.items()]
        wait(writes)  # so that nothing is being written any more when one of them has failed
        for write in writes:
            write.result()
        write_record(root, record)
    except OSError as error:
        raise StoreError(
            f"case {record.id!r} of {record.dataset!r} could not be written to {files.shown(base)}: {error}; "
            f"{files.remedy(error)}"
        ) from error
    return record


@functools.cache
def _pool(_pid: int) -> ThreadPoolExecutor:
    """Threads to write with, the process's own: most of a small case's time would go into starting them."""
    return ThreadPoolExecutor(_PARALLEL, thread_name_prefix="write")
