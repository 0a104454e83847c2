"""Batches: everything once, large items first and alone, small ones together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hssl_dist.jobs.batches import Batch, batched

MEGABYTE = 1 << 20


@given(st.lists(st.integers(0, 600 * MEGABYTE), max_size=60))
def test_every_item_is_in_one_batch_within_the_limits(sizes):
    batches = batched(list(enumerate(sizes)))
    assert sorted(index for batch in batches for index in batch.items) == list(range(len(sizes)))
    for batch in batches:
        assert batch.memory_bytes == sum(sizes[index] for index in batch.items)
        assert len(batch.items) <= 8
        assert len(batch.items) == 1 or sum(sizes[index] for index in batch.items) <= 256 * MEGABYTE
    largest = [max(sizes[index] for index in batch.items) for batch in batches]
    assert largest == sorted(largest, reverse=True)


def test_values():
    sized = [
        ("small", 1),
        ("huge", 300 * MEGABYTE),
        ("half", 128 * MEGABYTE),
        ("other half", 128 * MEGABYTE - 1),
    ]
    assert batched(sized) == [
        Batch(("huge",), 300 * MEGABYTE),
        Batch(("half", "other half", "small"), 256 * MEGABYTE),
    ]
