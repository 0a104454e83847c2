"""The `zarr.json` documents of groups and sharded arrays, as zarr-python would write them.

zarr-python makes them through its event loop, at ten milliseconds a case: half the time of a small one. The
tests demand the same bytes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hssl_dist.store.sharding import ZSTD_LEVEL

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np


def group_document(attributes: Mapping[str, Any]) -> bytes:
    """Of a group."""
    return _document({"attributes": attributes, "zarr_format": 3, "node_type": "group"})


def array_document(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    chunk: tuple[int, ...],
    shard: tuple[int, ...],
    axes: str,
    attributes: Mapping[str, Any],
) -> bytes:
    """Of an array of shards as `encode_shard` makes them. `axes` has a letter for each dimension."""
    little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
    # Crc32c: plain zstd lets flipped bits pass.
    inner = [
        {"name": "bytes"} if dtype.itemsize == 1 else little_endian,
        {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}},
        {"name": "crc32c"},
    ]
    sharding = {
        "chunk_shape": chunk,
        "codecs": inner,
        "index_codecs": [little_endian, {"name": "crc32c"}],
        "index_location": "end",
    }
    return _document(
        {
            "shape": shape,
            "data_type": dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": dtype.type(0).item(),
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": attributes,
            "dimension_names": list(axes),
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }
    )


def _document(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=2).encode()
