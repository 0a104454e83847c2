"""Chunk grids fit every volume; names stay inside the store."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hssl_dist.errors import StoreError
from hssl_dist.store import layout

SIDE = st.integers(1, 1000)


@given(st.tuples(SIDE, SIDE, SIDE))
def test_chunk_grid_fits_any_volume(shape):
    wanted_chunk, wanted_shard = (32, 32, 32), (256, 256, 256)
    chunks, shards = layout.chunk_grid(shape, wanted_chunk, wanted_shard)
    for side, chunk, shard in zip(shape, chunks, shards, strict=True):
        assert shard % chunk == 0
        assert 1 <= chunk <= min(side, 48)
        assert shard <= max(256, chunk)
        count = math.ceil(side / chunk)
        assert count * chunk - side < count, "padding is below one voxel per chunk"
        assert math.ceil(side / shard) * shard - side < shard, "no shard is empty"


@pytest.mark.parametrize(
    ("shape", "chunk", "shard"),
    [
        ((2, 45, 45), (2, 45, 45), (2, 45, 45)),
        ((35, 51, 35), (35, 26, 35), (35, 52, 35)),
        ((256, 256, 256), (32, 32, 32), (256, 256, 256)),
        ((512, 300, 257), (32, 34, 33), (256, 170, 132)),
    ],
)
def test_chunk_grid_values(shape, chunk, shard):
    assert layout.chunk_grid(shape, (32, 32, 32), (256, 256, 256)) == (chunk, shard)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\\b", ".hidden", "a\nb"])
def test_names_that_leave_the_store_are_refused(name):
    with pytest.raises(StoreError, match="cannot name an object"):
        layout.record_url("/store", "toy", name)


def test_urls():
    assert layout.manifest_url("s3://b/p", "toy") == "s3://b/p/toy/manifest.jsonl"
    assert layout.record_url("/store", "toy", "sub 1") == "/store/toy/records/sub 1.jsonl"
    assert layout.case_folder("sub 1") == "sub 1.zarr"
