"""Putting a case into a store: objects first, the commit record last."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
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


def write_case(
    root: str, record: CaseRecord, volume: Volume, classes: Mapping[int, str], storage: StorageConfig
) -> CaseRecord:
    """Write a case anew and commit it; returns `record` with its objects.

    `volume` is prepared (normalised float32, `record.shape`); the manifest must not list the case meanwhile
    (`withdraw`). Killed at any point, the case either is as it was, or does not exist. Raises StoreError if
    the storage refuses, InputError if the volume holds values that cannot be stored.
    """
    folder = layout.case_folder(record.id)
    data = {
        f"{folder}/{path}": blob for path, blob in encode_case(record.id, volume, classes, storage).items()
    }
    committed = record.model_copy(
        update={"objects": tuple(describe(path, blob) for path, blob in data.items())}
    )
    base = layout.dataset_url(root, record.dataset)
    try:
        remove_case(root, record.dataset, record.id)
        with ThreadPoolExecutor(min(_PARALLEL, len(data))) as pool:
            for _ in pool.map(lambda item: files.write(files.join(base, item[0]), item[1]), data.items()):
                pass
        write_record(root, committed)
    except OSError as error:
        raise StoreError(
            f"case {record.id!r} of {record.dataset!r} could not be written to {base}: {error}"
        ) from error
    return committed
