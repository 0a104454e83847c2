"""Reading with tensorstore: concurrent, coalescing ranges of a shard, without Python's lock.

Local disk and S3 are read by tensorstore itself. Of any other file system the objects a box needs are fetched
whole, compared with their recorded hashes and decoded from memory. Sole importer of tensorstore.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorstore as ts

from hssl_dist import files
from hssl_dist.records import Scaling
from hssl_dist.store import layout, objects
from hssl_dist.store.backend import Box, Pending, StoredArray, scaling_of
from hssl_dist.store.figures import Counter, ReadFigures
from hssl_dist.store.quantising import Stored

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hssl_dist.records import CaseRecord, StoredObject

_OPEN_ARRAYS = 4096  # handles kept; each costs a few kilobytes
_FETCHES = 16  # objects fetched at once where tensorstore does not do it
_RETRIES = {"max_retries": 8, "initial_delay": "1s", "max_delay": "16s"}
"""Attempts at one request to S3, so about a minute for a server that fails, and nine for one that hangs:
tensorstore gives up on a request that has been silent for a minute. By its own default, 32 attempts with
pauses of up to 32 s, these would be a quarter of an hour, and three quarters.
"""
_METRICS = ("/tensorstore/kvstore/file/", "/tensorstore/kvstore/s3/")


class TensorstoreBackend:
    """The fast `Backend`. Metadata is fetched and checked against its recorded hash once per array; chunks
    carry their own checksums. `chunk_bytes` of decoded chunks stay in memory.

    tensorstore counts requests and bytes for the whole process: what other readers in it do in the meantime
    is in the figures too.
    """

    def __init__(self, root: str, chunk_bytes: int) -> None:
        self._root = root
        self._reading = _context(chunk_bytes)
        self._filling = _context(0)
        self._counter = Counter()
        self._before = _native_figures()
        self._fetches = ThreadPoolExecutor(_FETCHES, thread_name_prefix="fetch")
        self._open = functools.lru_cache(maxsize=_OPEN_ARRAYS)(self._open_array)

    def open(self, record: CaseRecord, array: str) -> StoredArray:
        """See `Backend`."""
        metadata = objects.find(record, f"{array}/{layout.METADATA}")
        document = self._open(record.dataset, metadata)
        if isinstance(document, _NativeArray):
            return document
        return _FetchedArray(
            self._root,
            record,
            array,
            document,
            _dtype(document),
            _scaling(document),
            self._counter,
            self._fetches,
        )

    def fetched(self) -> ReadFigures:
        """See `Backend`."""
        return self._counter.total + _native_figures() - self._before

    def _open_array(self, dataset: str, metadata: StoredObject) -> Any:
        document = json.loads(objects.fetch(self._root, dataset, metadata))
        self._counter.add(ReadFigures(requests=1, bytes_fetched=metadata.size_bytes))
        folder = metadata.path.removesuffix(layout.METADATA)
        place = kvstore(files.join(layout.dataset_url(self._root, dataset), folder), os.environ)
        if place is None:
            return document
        reading, filling = (
            _open_spec(place, document, context) for context in (self._reading, self._filling)
        )
        return _NativeArray(
            reading.result(), filling.result(), tuple(document["shape"]), _dtype(document), _scaling(document)
        )


@dataclass(frozen=True, slots=True)
class _NativeArray:
    """A `StoredArray` whose objects tensorstore reads."""

    reading: Any
    filling: Any  # the same, without a place in the cache of chunks
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    scaling: Scaling

    def start(self, box: Box) -> Pending:
        """See `StoredArray`."""
        pending: Pending = self.reading[box].read().result
        return pending

    def read_into(self, box: Box, out: Stored) -> None:
        """See `StoredArray`."""
        ts.array(out).write(self.filling[box]).result()


@dataclass(frozen=True, slots=True)
class _FetchedArray:
    """A `StoredArray` whose objects are fetched whole; it keeps none of them."""

    root: str
    record: CaseRecord
    array: str
    document: dict[str, Any]
    dtype: np.dtype[Any]
    scaling: Scaling
    counter: Counter
    fetches: ThreadPoolExecutor

    @property
    def shape(self) -> tuple[int, ...]:
        """See `StoredArray`."""
        return tuple(self.document["shape"])

    def start(self, box: Box) -> Pending:
        """See `StoredArray`."""
        futures = [self.fetches.submit(self._fetch, item) for item in self._objects(box)]

        def finish() -> Stored:
            values: Stored = self._decoded(dict(future.result() for future in futures))[box].read().result()
            return values

        return finish

    def read_into(self, box: Box, out: Stored) -> None:
        """See `StoredArray`."""
        fetched = dict(self.fetches.map(self._fetch, self._objects(box)))
        ts.array(out).write(self._decoded(fetched)[box]).result()

    def _objects(self, box: Box) -> Iterator[StoredObject]:
        """The recorded shards that hold a box."""
        shard = self.document["chunk_grid"]["configuration"]["chunk_shape"]
        for place in itertools.product(
            *(range(part.start // size, -(-part.stop // size)) for part, size in zip(box, shard, strict=True))
        ):
            yield objects.find(self.record, f"{self.array}/c/{'/'.join(map(str, place))}")

    def _fetch(self, item: StoredObject) -> tuple[str, bytes]:
        data = objects.fetch(self.root, self.record.dataset, item)
        self.counter.add(ReadFigures(requests=1, bytes_fetched=len(data)))
        return item.path.removeprefix(f"{self.record.image_path}/{self.array}/"), data

    def _decoded(self, fetched: Mapping[str, bytes]) -> Any:
        context = _context(0)
        memory = ts.KvStore.open({"driver": "memory"}, context=context).result()
        for key, data in fetched.items():
            memory[key] = data
        return _open_spec({"driver": "memory"}, self.document, context).result()


def _context(chunk_bytes: int) -> Any:
    return ts.Context({"cache_pool": {"total_bytes_limit": chunk_bytes}, "s3_request_retries": _RETRIES})


def _open_spec(place: dict[str, Any], document: dict[str, Any], context: Any) -> Any:
    spec = {
        "driver": "zarr3",
        "kvstore": place,
        "metadata": document,
        "fill_missing_data_reads": False,
        "recheck_cached_data": False,  # a case's objects never change under one record
    }
    return ts.open(spec, context=context, open=True, read=True, assume_metadata=True)


def _dtype(document: dict[str, Any]) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(document["data_type"])
    return dtype


def _scaling(document: dict[str, Any]) -> Scaling:
    return scaling_of(document["attributes"])


def _native_figures() -> ReadFigures:
    """What tensorstore has read in this process so far; its `read` counts ranges before they coalesce."""
    return ReadFigures(
        requests=sum(_metric(f"{prefix}batch_read") for prefix in _METRICS),
        bytes_fetched=sum(_metric(f"{prefix}bytes_read") for prefix in _METRICS),
    )


def _metric(name: str) -> int:
    found = ts.experimental_collect_matching_metrics(name)
    return sum(
        int(value["value"]) for metric in found if metric["name"] == name for value in metric["values"]
    )


def kvstore(url: str, environment: Mapping[str, str]) -> dict[str, Any] | None:
    """tensorstore's specification of a folder: a local path or `s3://bucket/prefix`; None for any other URL.

    S3 takes its endpoint, region and credentials from the environment's usual variables.
    """
    if files.is_local(url):
        return {"driver": "file", "path": url}
    scheme, _, rest = url.partition("://")
    if scheme != "s3":
        return None
    bucket, _, prefix = rest.partition("/")
    spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": prefix}
    if "AWS_ACCESS_KEY_ID" in environment:
        spec["aws_credentials"] = {"type": "environment"}  # looks nowhere else
    if endpoint := environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL"):
        spec["endpoint"] = endpoint
    if region := environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION"):
        spec["aws_region"] = region
    elif endpoint:
        spec["aws_region"] = "us-east-1"  # other servers want some region in the signature, whichever
    return spec
