"""Shards written here are those zarr-python writes, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from hssl_dist.store.sharding import box_of, encode_shard, shard_places

RNG = np.random.default_rng(0)
CASES = {
    "one chunk": ((5, 6, 7), (5, 6, 7), (5, 6, 7), "uint8"),
    "whole shards": ((16, 16, 16), (4, 4, 4), (8, 16, 8), "int16"),
    "cut at every border": ((13, 21, 9), (4, 5, 3), (8, 15, 6), "int16"),
    "chunks wholly outside": ((9, 9, 9), (4, 4, 4), (16, 8, 12), "float16"),
    "odd numbers of chunks": ((1, 21, 35, 12), (1, 3, 5, 4), (1, 21, 35, 12), "int16"),
    "two channels": ((2, 6, 6, 6), (1, 3, 3, 2), (1, 6, 6, 6), "int16"),
}


@pytest.mark.parametrize("name", CASES)
def test_shards_are_those_of_zarr_python(name):
    shape, chunk, shard, dtype = CASES[name]
    values = (RNG.normal(size=shape) * 50).astype(dtype)
    memory = {}
    array = zarr.create_array(
        MemoryStore(memory), name="0", shape=shape, dtype=dtype, chunks=chunk, shards=shard,
        compressors=(ZstdCodec(level=3), Crc32cCodec()), fill_value=0, config={"write_empty_chunks": True},
    )  # fmt: skip
    array[...] = values
    expected = {path: buffer.to_bytes() for path, buffer in memory.items() if "/c/" in path}
    assert {
        f"0/c/{'/'.join(map(str, place))}": encode_shard(values[box_of(place, shard)], chunk, shard)
        for place in shard_places(shape, shard)
    } == expected
