"""Reading with tensorstore: concurrent, coalescing ranges of a shard, without Python's lock.

Sole importer of tensorstore.
"""

from __future__ import annotations

import functools
import json
import os
from typing import TYPE_CHECKING, Any

import tensorstore as ts

from hssl_dist import files
from hssl_dist.errors import ConfigError
from hssl_dist.store import layout, objects
from hssl_dist.store.quantising import Scaling

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hssl_dist.records import CaseRecord, StoredObject
    from hssl_dist.store.reader import Box, Pending

_OPEN_ARRAYS = 4096  # handles kept; each costs a few kilobytes


class TensorstoreBackend:
    """The fast `Backend`. Metadata is fetched and checked against its recorded hash once per array; chunks
    carry their own checksums.
    """

    def __init__(self, root: str, cache_bytes: int) -> None:
        self._root = root
        self._context = ts.Context({"cache_pool": {"total_bytes_limit": cache_bytes}})
        self._open = functools.lru_cache(maxsize=_OPEN_ARRAYS)(self._open_array)

    def start(self, record: CaseRecord, array: str, box: Box) -> tuple[Pending, Scaling]:
        """See `Backend`."""
        handle, scaling = self._open(record.dataset, objects.find(record, f"{array}/{layout.METADATA}"))
        read = handle[box].read()
        return read.result, scaling

    def _open_array(self, dataset: str, metadata: StoredObject) -> tuple[Any, Scaling]:
        document = json.loads(objects.fetch(self._root, dataset, metadata))
        attributes = document["attributes"]
        scaling = Scaling(attributes.get("scale_factor", 1.0), attributes.get("add_offset", 0.0))
        folder = metadata.path.removesuffix(layout.METADATA)
        spec = {
            "driver": "zarr3",
            "kvstore": kvstore(files.join(layout.dataset_url(self._root, dataset), folder), os.environ),
            "metadata": document,
            "fill_missing_data_reads": False,
            "recheck_cached_data": False,  # a case's objects never change under one record
        }
        opened = ts.open(spec, context=self._context, open=True, read=True, assume_metadata=True)
        return opened.result(), scaling


def kvstore(url: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """tensorstore's specification of a folder: a local path or `s3://bucket/prefix`.

    S3 takes its endpoint, region and credentials from the environment's usual variables. Raises ConfigError
    for any other kind of URL.
    """
    if files.is_local(url):
        return {"driver": "file", "path": url}
    scheme, _, rest = url.partition("://")
    if scheme != "s3":
        raise ConfigError(
            f"the tensorstore reader cannot read {url}; store.url must be a local path or s3://"
        )
    bucket, _, prefix = rest.partition("/")
    spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": prefix}
    if endpoint := environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL"):
        spec["endpoint"] = endpoint
    if region := environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION"):
        spec["aws_region"] = region
    elif endpoint:
        spec["aws_region"] = "us-east-1"  # other servers want some region in the signature, whichever
    return spec
