"""Whatever the store, the config and the number of ranks: who sees what follows from (seed, step, index)."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from hssl_dist.errors import ConfigError
from hssl_dist.records import TISSUE
from hssl_dist.sampling import PretrainingLoader, Schedule, rank_slice, split_manifest
from tests.depth import examples
from tests.unit.sampling import strategies
from tests.unit.sampling.conftest import MemoryReader


def held_out(manifests, split):
    """The cases of test patients, and all others that show one of their scans: by plain sets."""
    if split is None:
        return set()
    cases = [case for manifest in manifests.values() for case in manifest.cases]
    tested = {
        (name, patient)
        for name, manifest in manifests.items()
        for patient in split_manifest(manifest, split).test
    }
    scans = {scan for case in cases if (case.dataset, case.patient) in tested for scan in case.fingerprints}
    return {
        (case.dataset, case.id)
        for case in cases
        if (case.dataset, case.patient) in tested or scans & set(case.fingerprints)
    }


STORES = (strategies.manifests(), strategies.sampling_configs(), strategies.seeds, st.integers(1, 13))
"""Manifests, a config, a seed and the size of a global batch."""


def schedule_of(manifests, config, seed, global_batch):
    """The schedule of any store that has a case to draw from."""
    cases = {(case.dataset, case.id) for manifest in manifests.values() for case in manifest.cases}
    assume(cases - held_out(manifests, config.exclude_test))
    return Schedule(manifests, config, seed, global_batch)


def batch_of(schedule, step):
    return [schedule.draw(step, index) for index in range(schedule.global_batch)]


@given(st.tuples(*STORES), strategies.steps, st.randoms())
@examples(80)
def test_a_draw_depends_on_seed_step_and_index_alone(made, first, random):
    schedule, manifests = schedule_of(*made), made[0]
    steps = range(first, first + 3)
    expected = {step: batch_of(schedule, step) for step in steps}

    shuffled = [
        (name, strategies.manifest(random.sample(list(own.cases), len(own.cases))))
        for name, own in manifests.items()
    ]
    random.shuffle(shuffled)
    other = Schedule(dict(shuffled), schedule.config, schedule.seed, schedule.global_batch)
    places = list(itertools.product(steps, range(schedule.global_batch)))
    random.shuffle(places)

    assert (other.tasks, other.groups) == (schedule.tasks, schedule.groups)
    for step, index in places:
        assert other.draw(step, index) == expected[step][index]
        assert other.seed_of(step, index) == schedule.seed_of(step, index)


@given(st.integers(1, 10**6), st.data())
@examples(100)
def test_ranks_share_a_batch_without_gap_or_overlap(global_batch, data):
    world_size = data.draw(st.integers(1, min(global_batch, 200)))
    slices = [rank_slice(global_batch, rank, world_size) for rank in range(world_size)]

    assert slices[0].start == 0
    assert slices[-1].stop == global_batch
    assert all(one.stop == other.start for one, other in itertools.pairwise(slices))
    assert max(map(len, slices)) - min(map(len, slices)) <= 1


def joined(batches):
    """The global batch that the ranks' batches of one step are."""
    return (
        [index for batch in batches for index in batch.indices],
        [seed for batch in batches for seed in batch.seeds],
        *(
            torch.cat([getattr(batch, name) for batch in batches]).tolist()
            for name in ("tasks", "groups", "cases", "patients")
        ),
        torch.cat([batch.regions.values() for batch in batches]).tolist(),
    )


@given(st.tuples(*STORES), st.data())
@examples(25)
def test_the_batches_of_all_ranks_are_the_global_batch_from_any_step_on(made, data):
    schedule = schedule_of(*made)
    reader = PlainReader()
    begin = data.draw(strategies.steps)
    whole = list(PretrainingLoader(schedule, reader).batches(begin, begin + 4))
    assert [batch.step for batch in whole] == list(range(begin, begin + 4))
    assert all(batch.indices == tuple(range(schedule.global_batch)) for batch in whole)

    world_size = data.draw(st.integers(1, schedule.global_batch))
    resumed = data.draw(st.integers(0, 3))
    ranks = [
        list(PretrainingLoader(schedule, reader, rank, world_size).batches(begin + resumed, begin + 4))
        for rank in range(world_size)
    ]
    for batch, *shares in zip(whole[resumed:], *ranks, strict=True):
        assert {share.step for share in shares} == {batch.step}
        assert joined(shares) == joined([batch])


class PlainReader(MemoryReader):
    """One whose numbers do not depend on a region's place in a batch."""

    def fill_numbers(self, pairs, out):
        form = super().fill_numbers(pairs, out)
        out += (torch.arange(len(pairs)).numpy() / self.step).astype(out.dtype)[:, None, None, None]
        form.scalings[:, 1] = 0
        return form


@given(st.tuples(*STORES), strategies.steps)
@examples(80)
def test_blocks_keep_their_task_and_divide_the_probabilities_evenly(made, step):
    schedule, manifests = schedule_of(*made), made[0]
    size, total = schedule.config.block_size, schedule.global_batch
    blocks = max(1, total // size)
    tasks = [draw.task for draw in batch_of(schedule, step)]

    by_block = [
        {tasks[index] for index in range(total) if index * blocks // total == block}
        for block in range(blocks)
    ]
    lengths = Counter(index * blocks // total for index in range(total))
    assert all(len(found) == 1 for found in by_block)
    assert max(lengths.values()) - min(lengths.values()) <= 1
    assert min(lengths.values()) >= min(size, total)

    out = held_out(manifests, schedule.config.exclude_test)
    cases = Counter(
        case.task for own in manifests.values() for case in own.cases if (case.dataset, case.id) not in out
    )
    weights = [cases[task] ** schedule.config.task_exponent for task in schedule.tasks]
    assert sorted(cases) == list(schedule.tasks)
    assert schedule.task_probabilities == pytest.approx([weight / sum(weights) for weight in weights])
    counts = Counter(next(iter(found)) for found in by_block)
    for task, share in enumerate(schedule.task_probabilities):
        assert abs(counts[task] - share * blocks) < 1 + 1e-9


@given(st.tuples(*STORES), strategies.steps)
@examples(100)
def test_a_region_lies_in_its_volume_and_around_tissue(made, step):
    schedule = schedule_of(*made)
    config = schedule.config
    expected = tuple(math.ceil(size * (1 + config.margin) - 1e-9) for size in config.patch_size)
    for draw in batch_of(schedule, step):
        region, record = draw.region, draw.record
        assert (region.dataset, region.case, region.shape) == (record.dataset, record.id, expected)
        assert 0 <= region.channel < len(record.modalities)
        assert (schedule.tasks[draw.task], schedule.groups[draw.group]) == (record.task, record.group)
        for start, size, side in zip(region.start, region.shape, record.shape, strict=True):
            if size <= side:
                assert 0 <= start <= side - size
            else:
                assert (start, start + size) == ((side - size) // 2, (side - size) // 2 + size)
        if config.foreground == 1.0 and (tissue := record.foreground.get(TISSUE)):
            assert any(contains(region, voxel) for voxel in tissue)


def contains(region, voxel):
    return all(
        start <= place < start + size
        for start, place, size in zip(region.start, voxel, region.shape, strict=True)
    )


@given(strategies.manifests(), strategies.sampling_configs(), strategies.seeds)
@examples(100)
def test_cases_that_are_held_out_never_come_and_all_others_can(manifests, config, seed):
    out = held_out(manifests, config.exclude_test)
    cases = {(case.dataset, case.id) for manifest in manifests.values() for case in manifest.cases}
    if cases == out:
        with pytest.raises(ConfigError, match="there is no case to draw from in "):
            Schedule(manifests, config, seed, 8)
        return
    schedule = Schedule(manifests, config, seed, 8)

    drawn = {
        (draw.region.dataset, draw.region.case) for step in range(5) for draw in batch_of(schedule, step)
    }
    assert drawn <= cases - out
    assert {(name, case) for name, ids in schedule.case_ids().items() for case in ids} == cases - out
