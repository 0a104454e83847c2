import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from hssl_dist.config.pretrain import SamplingConfig
from hssl_dist.errors import CorruptError, StoreError
from hssl_dist.sampling import PretrainingLoader, Schedule, rank_slice

CONFIG = SamplingConfig(patch_size=(2, 4, 4), margin=0.5, block_size=2, foreground=0.5)


@pytest.fixture
def schedule(record, manifest):
    cases = [
        record(f"case{n}", shape=(2 + n, 5, 9), channels=1 + n % 2, foreground={"1": ((0, 1, 2),)})
        for n in range(5)
    ]
    lung = [record("other", dataset="lung", group="chest")]
    return Schedule({"heart": manifest(*cases), "lung": manifest(*lung)}, CONFIG, 5, 7)


def test_a_batch_holds_what_the_schedule_draws(schedule, memory_reader):
    reader = memory_reader()

    batches = list(PretrainingLoader(schedule, reader).batches(2, 5))

    assert [batch.step for batch in batches] == [2, 3, 4]
    for batch in batches:
        assert batch.indices == tuple(range(7))
        assert batch.regions.numbers.shape == (7, 1, 3, 6, 6)
        assert batch.regions.numbers.dtype == torch.int16
        values = batch.regions.values()
        assert values.dtype == torch.float32
        assert batch.wait_s >= 0
        for index in range(7):
            draw = schedule.draw(batch.step, index)
            expected = reader.region(draw.record, draw.region)
            np.testing.assert_array_equal(values[index, 0].numpy(), expected)
            assert batch.tasks[index] == draw.task
            assert batch.groups[index] == draw.group
            assert batch.seeds[index] == schedule.seed_of(batch.step, index)
        records = [schedule.draw(batch.step, index).record for index in range(7)]
        for numbers, name in ((batch.cases, "id"), (batch.patients, "patient")):
            owners = [(record.dataset, getattr(record, name)) for record in records]
            same = torch.tensor([[one == other for other in owners] for one in owners])
            assert torch.equal(numbers[:, None] == numbers, same)


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_together_see_what_one_process_sees(schedule, memory_reader, world_size):
    whole = next(PretrainingLoader(schedule, memory_reader()).batches(4, 5))

    shares = [
        next(PretrainingLoader(schedule, memory_reader(), rank, world_size).batches(4, 5))
        for rank in range(world_size)
    ]

    assert sum((share.indices for share in shares), ()) == whole.indices
    assert sum((share.seeds for share in shares), ()) == whole.seeds
    assert torch.equal(torch.cat([share.regions.values() for share in shares]), whole.regions.values())
    for name in ("tasks", "groups", "cases", "patients"):
        assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(whole, name))
    assert sum(share.digest for share in shares) == whole.digest


def test_a_batch_s_digest_tells_other_samples_and_other_regions_of_them(schedule, manifest, memory_reader):
    batches = list(PretrainingLoader(schedule, memory_reader()).batches(0, 3))

    class Shifted(Schedule):
        def draw(self, step, index):
            draw = super().draw(step, index)
            if index != 3:
                return draw
            z, y, x = draw.region.start
            return replace(draw, region=replace(draw.region, start=(z, y, x + 1)))

    shifted = Shifted({"lung": manifest(*schedule._records[1])}, CONFIG, 5, 7)
    plain = Schedule({"lung": manifest(*schedule._records[1])}, CONFIG, 5, 7)
    digests = [
        next(PretrainingLoader(each, memory_reader()).batches(1, 2)).digest for each in (plain, shifted)
    ]

    assert len({*(batch.digest for batch in batches), *digests}) == 5
    assert batches[1].digest == next(PretrainingLoader(schedule, memory_reader()).batches(1, 2)).digest
    assert all(0 < batch.digest < 7 << 32 for batch in batches)


def test_ranks_differ_by_one_sample_at_most():
    slices = [rank_slice(25, rank, 4) for rank in range(4)]

    assert [index for part in slices for index in part] == list(range(25))
    assert [len(part) for part in slices] == [6, 6, 6, 7]


def test_resuming_continues_the_same_batches(schedule, memory_reader):
    through = list(PretrainingLoader(schedule, memory_reader()).batches(0, 4))
    resumed = list(PretrainingLoader(schedule, memory_reader()).batches(2, 4))

    for first, second in zip(through[2:], resumed, strict=True):
        assert torch.equal(first.regions.values(), second.regions.values())


def test_an_unreadable_case_is_named(schedule, memory_reader):
    loader = PretrainingLoader(schedule, memory_reader(broken=["other"]))

    with pytest.raises(StoreError) as error:
        list(loader.batches(0, 50))

    assert str(error.value) == "case 'other' of dataset 'lung' cannot be read: disk on fire"
    assert isinstance(error.value.__cause__, OSError)


def test_the_stores_own_errors_are_kept(schedule, memory_reader):
    lost = CorruptError("heart/case1.zarr/0/c/0 is missing")

    with pytest.raises(CorruptError) as error:
        list(PretrainingLoader(schedule, memory_reader(["case1"], lost)).batches(0, 50))

    assert error.value is lost


@pytest.mark.parametrize(("batches", "depth"), [(0.5, 1), (1, 1), (1.99, 1), (2, 2), (3, 3), (100, 3)])
def test_what_is_read_ahead_is_bounded_in_bytes(schedule, memory_reader, batches, depth):
    batch_bytes = next(PretrainingLoader(schedule, memory_reader()).batches(0, 1)).regions.numbers.nbytes
    changes = {"prefetch_batches": 3, "prefetch_bytes": int(batches * batch_bytes)}
    schedule.config = CONFIG.model_copy(update=changes)
    reader = memory_reader()

    loader = PretrainingLoader(schedule, reader)
    with contextlib.closing(loader.batches(0, 1000)) as found:
        next(found)

    assert loader.batch_bytes == batch_bytes
    assert loader.depth == depth
    assert reader.calls <= 1 + depth


def test_closing_ends_the_reading(schedule, memory_reader):
    reader = memory_reader()

    with contextlib.closing(PretrainingLoader(schedule, reader).batches(0, 1000)) as batches:
        next(batches)
    calls = reader.calls

    assert calls <= 1 + CONFIG.prefetch_batches + 1
    assert list(batches) == []
    assert reader.calls == calls
