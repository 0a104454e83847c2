"""Labelled patches of any cases: where they lie, and that they depend on (seed, step, index) alone."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from hssl_dist.sampling import SupervisedLoader
from hssl_dist.sampling.placement import annotated, draw_start
from tests.depth import examples
from tests.unit.sampling import strategies
from tests.unit.sampling.conftest import MemoryReader

RECORDS = (
    st.integers(1, 6)
    .flatmap(lambda count: st.tuples(*(strategies.cases("heart", f"c{n}", channels=2) for n in range(count))))
    .map(lambda found: [case.model_copy(update={"labelled": True}) for case in found])
)


class NotingReader(MemoryReader):
    """One that remembers what was asked for, batch by batch."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def fill(self, pairs, out):
        self.asked.append(list(pairs))
        super().fill(pairs, out)


@given(RECORDS, strategies.sizes, st.sampled_from([0.0, 0.5, 1.0]), strategies.seeds, st.data())
@examples(40)
def test_patches_depend_on_seed_step_and_index_alone(records, patch, foreground, seed, data):
    begin, size = data.draw(strategies.steps), data.draw(st.integers(1, 5))
    resumed, larger = data.draw(st.integers(0, 2)), size + data.draw(st.integers(0, 3))
    shuffled = data.draw(st.permutations(records))
    reader = NotingReader()

    whole = list(SupervisedLoader(records, reader, patch, size, foreground, seed).batches(begin, begin + 3))
    again = list(
        SupervisedLoader(shuffled, MemoryReader(), patch, larger, foreground, seed).batches(
            begin + resumed, begin + 3
        )
    )

    assert [batch.step for batch in whole] == list(range(begin, begin + 3))
    for batch, other in zip(whole[resumed:], again, strict=True):
        assert (batch.step, batch.seeds) == (other.step, other.seeds[:size])
        assert torch.equal(batch.image, other.image[:size])
        assert torch.equal(batch.label, other.label[:size])
    for batch, pairs in zip(whole, reader.asked, strict=True):
        for place, (record, region) in enumerate(pairs[::2]):
            assert pairs[2 * place + 1][0] is record
            np.testing.assert_array_equal(batch.label[place], reader.label_region(record, region))
            assert [region.channel for _, region in pairs[2 * place : 2 * place + 2]] == [0, 1]


@given(RECORDS, strategies.sizes, st.floats(0, 1), st.integers(0, 2**63))
@examples(150)
def test_a_box_lies_in_its_volume_and_around_what_it_should(records, shape, foreground, seed):
    for record in records:
        for names in (annotated(record), ["any"]):
            start = draw_start(record, shape, foreground, names, np.random.default_rng(seed))
            for low, size, side in zip(start, shape, record.shape, strict=True):
                assert 0 <= low <= side - size if size <= side else low == (side - size) // 2
            around = draw_start(record, shape, 1.0, names, np.random.default_rng(seed))
            voxels = [voxel for name in names for voxel in record.foreground.get(name, ())]
            assert not voxels or any(
                all(low <= at < low + size for low, at, size in zip(around, voxel, shape, strict=True))
                for voxel in voxels
            )
