import collections
import hashlib

import pytest

from hssl_dist.config.parts import SplitConfig
from hssl_dist.config.pretrain import SamplingConfig
from hssl_dist.errors import ConfigError
from hssl_dist.sampling import Schedule, region_shape, split_manifest
from hssl_dist.store import read_manifests, write_manifest

CONFIG = SamplingConfig(patch_size=(4, 8, 8), margin=0.5, block_size=4)


@pytest.fixture
def manifests(record, manifest):
    """Three tasks of 16, 4 and 1 patients; those of `heart` have two cases of two channels each."""
    heart = [record(f"h{n}", f"p{n // 2}", "heart", channels=2, group="chest") for n in range(32)]
    lung = [record(f"l{n}", None, "lung", group="chest") for n in range(4)]
    brain = [record("b", None, "brain", group="head", shape=(3, 40, 40))]
    return {cases[0].dataset: manifest(*cases) for cases in (heart, lung, brain)}


def all_draws(schedule, steps):
    return [[schedule.draw(step, index) for index in range(schedule.global_batch)] for step in range(steps)]


def test_names_are_sorted_and_numbered(manifests):
    schedule = Schedule(manifests, CONFIG, 0, 16)

    assert schedule.tasks == ("brain", "heart", "lung")
    assert schedule.groups == ("chest", "head")
    for draw in all_draws(schedule, 5)[0]:
        assert schedule.tasks[draw.task] == draw.record.task == draw.region.dataset
        assert schedule.groups[draw.group] == draw.record.group
        assert draw.region.case == draw.record.id
        assert draw.region.shape == (6, 12, 12)


def test_a_draw_depends_on_seed_step_and_index_alone(manifests, manifest):
    schedule = Schedule(manifests, CONFIG, 3, 8)
    forwards = all_draws(schedule, 4)
    shuffled = {name: manifest(*manifests[name].cases[::-1]) for name in reversed(manifests)}
    other = Schedule(shuffled, CONFIG, 3, 8)
    backwards = {(step, index): other.draw(step, index) for step in reversed(range(4)) for index in (7, 2, 5)}

    assert all(draw == forwards[step][index] for (step, index), draw in backwards.items())
    assert all_draws(Schedule(manifests, CONFIG, 4, 8), 4) != forwards
    assert schedule.seed_of(2, 1) == other.seed_of(2, 1)


@pytest.mark.parametrize(
    ("changes", "seed", "global_batch", "expected"),
    [
        ({}, 0, 16, "ebe5d7dbf9ea0ef81232556b01126ba9597784e9976cfa3e289c2d60ab237883"),
        (
            {"task_exponent": 0.0, "block_size": 3},
            7,
            10,
            "a53e0a622eb9637b77d57b25e90bd932687e434500cfdf77df6feee53db6fef1",
        ),
        (
            {
                "exclude_test": SplitConfig(test=0.3, seed=2),
                "foreground": 0.9,
                "datasets": ("more", "heart"),
            },
            3,
            5,
            "fae3e8cb03b56cb1669817b32458e5bb2ce43fc74f9d7d92ec380267e43876fa",
        ),
    ],
)
@pytest.mark.parametrize("where", ["memory", "file"])
def test_draws_are_those_of_earlier_versions(
    record, manifest, tmp_path, changes, seed, global_batch, expected, where
):
    voxels = {"1": ((1, 1, 1),), "any": ((1, 2, 3), (4, 5, 6), (7, 8, 9), (0, 19, 39)), "3": ()}
    heart = [
        record(f"h{n}", f"p{n // 3}", "heart", (8 + n, 20, 40), n % 4 != 0, 2, voxels, group="chest")
        for n in range(40)
    ]
    lung = [record(f"l{n}", None, "lung", (9, 30, 5 + n), group="chest") for n in range(11)]
    more = [
        record(f"h{n}", f"p{n}", "more", (30, 30, 30), n % 2 == 0, 1, voxels, task="heart", group="head")
        for n in range(7)
    ]
    manifests = {cases[0].dataset: manifest(*cases) for cases in (heart, lung, more)}
    if where == "file":
        for made in manifests.values():
            write_manifest(str(tmp_path), made.header, made.cases)
        manifests = read_manifests(str(tmp_path))
    schedule = Schedule(manifests, CONFIG.model_copy(update=changes), seed, global_batch)

    rows = []
    for step in (0, 1, 2, 1000, 10**6):
        for index in range(global_batch):
            draw = schedule.draw(step, index)
            region, numbers = draw.region, (schedule.seed_of(step, index), draw.task, draw.group)
            where_it_is = (region.dataset, region.case, region.channel, region.start, region.shape)
            rows.append((*numbers, *where_it_is))

    assert hashlib.sha256(repr(rows).encode()).hexdigest() == expected


@pytest.mark.parametrize(("global_batch", "sizes"), [(8, [4, 4]), (3, [3]), (11, [6, 5]), (16, [4] * 4)])
def test_blocks_of_a_batch_share_a_task(manifests, global_batch, sizes):
    for draws in all_draws(Schedule(manifests, CONFIG, 0, global_batch), 30):
        tasks = [draw.task for draw in draws]
        for size in sizes:
            block, tasks = tasks[:size], tasks[size:]
            assert len(set(block)) == 1
        assert not tasks


@pytest.mark.parametrize(
    ("exponent", "shares"),
    [(0.0, (1 / 3, 1 / 3, 1 / 3)), (1.0, (1 / 37, 32 / 37, 4 / 37)), (0.5, (0.11552, 0.65345, 0.23103))],
)
@pytest.mark.parametrize("global_batch", [4, 12])
def test_every_block_follows_the_tasks_probabilities(manifests, exponent, shares, global_batch):
    config = CONFIG.model_copy(update={"task_exponent": exponent})
    schedule = Schedule(manifests, config, 0, global_batch)

    for first in range(0, global_batch, 4):
        counts = collections.Counter(schedule.draw(step, first).task for step in range(1000))
        for task, share in enumerate(shares):
            assert abs(counts[task] / 1000 - share) < 0.05
    assert schedule.task_probabilities == pytest.approx(shares, abs=1e-4)


def test_a_weight_has_a_task_drawn_so_many_times_as_often(manifests):
    config = CONFIG.model_copy(update={"task_exponent": 0.0, "task_weights": {"heart": 4.0, "lung": 0.5}})
    schedule = Schedule(manifests, config, 0, 4)

    assert schedule.tasks == ("brain", "heart", "lung")
    assert schedule.task_probabilities == pytest.approx((1 / 5.5, 4 / 5.5, 0.5 / 5.5))
    counts = collections.Counter(schedule.draw(step, 0).task for step in range(1000))
    assert abs(counts[1] / 1000 - 4 / 5.5) < 0.05


def test_a_weight_of_a_task_that_is_not_drawn_is_refused(manifests):
    config = CONFIG.model_copy(update={"datasets": ("lung",), "task_weights": {"heart": 2.0}})

    with pytest.raises(ConfigError, match=r"task_weights names 'heart'; the tasks drawn are lung$"):
        Schedule(manifests, config, 0, 4)


def test_every_step_is_as_mixed_as_its_blocks_allow(manifests):
    config = CONFIG.model_copy(update={"task_exponent": 0.0, "block_size": 1})
    schedule = Schedule(manifests, config, 0, 7)

    for draws in all_draws(schedule, 20):
        counts = collections.Counter(draw.task for draw in draws)
        assert sorted(counts.values()) in ([2, 2, 3],)


def test_patients_cases_and_channels_are_drawn_evenly(record, manifest):
    cases = [record(f"a{n}", "many") for n in range(9)] + [record("b", "one", channels=2)]
    schedule = Schedule({"heart": manifest(*cases)}, CONFIG, 0, 8)

    draws = [draw for step in all_draws(schedule, 250) for draw in step]
    per_case = collections.Counter(draw.record.id for draw in draws)
    channels = collections.Counter(draw.region.channel for draw in draws if draw.record.id == "b")

    assert abs(per_case["b"] / 2000 - 0.5) < 0.04
    assert all(abs(per_case[f"a{n}"] / 2000 - 0.5 / 9) < 0.02 for n in range(9))
    assert abs(channels[1] / per_case["b"] - 0.5) < 0.05


def test_equal_names_in_two_datasets_of_a_task_are_two_patients(record, manifest):
    manifests = {
        name: manifest(*[record(f"case{n}", "p", name, task="heart") for n in range(count)])
        for name, count in (("first", 1), ("second", 5))
    }

    draws = [draw for step in all_draws(Schedule(manifests, CONFIG, 0, 8), 100) for draw in step]

    assert abs(sum(draw.region.dataset == "first" for draw in draws) / 800 - 0.5) < 0.06


def test_only_the_named_datasets_are_drawn(manifests):
    config = CONFIG.model_copy(update={"datasets": ("lung", "brain")})

    schedule = Schedule(manifests, config, 0, 8)

    assert schedule.tasks == ("brain", "lung")
    assert {draw.task for step in all_draws(schedule, 20) for draw in step} == {0, 1}


def test_all_cases_of_labelled_test_patients_can_be_left_out(record, manifest):
    cases = [record(f"{n}-{frame}", f"p{n}", labelled=frame == 0) for n in range(6) for frame in range(3)]
    cases += [record(f"free{n}", labelled=False) for n in range(3)]
    heart, split = manifest(*cases), SplitConfig(test=0.5, seed=1)
    config = CONFIG.model_copy(update={"exclude_test": split})

    draws = [draw for step in all_draws(Schedule({"heart": heart}, config, 0, 8), 80) for draw in step]

    seen = {draw.record.patient for draw in draws}
    assert seen == {case.patient for case in cases} - set(split_manifest(heart, split).test)
    assert len(seen) == 6


def test_a_scan_that_is_held_out_is_held_out_under_every_name(record, manifest):
    split = SplitConfig(test=0.5, seed=1)
    heart = manifest(*[record(f"p{n}", fingerprints=(f"scan {n}",)) for n in range(6)])
    others = [record(f"o{n}", dataset="other", fingerprints=(f"scan {n}", f"own {n}")) for n in range(9)]
    other = manifest(*others)
    config = CONFIG.model_copy(update={"exclude_test": split})
    tested = {int(patient[1:]) for patient in split_manifest(heart, split).test}
    also = {int(patient[1:]) for patient in split_manifest(other, split).test}

    draws = all_draws(Schedule({"heart": heart, "other": other}, config, 0, 8), 80)

    seen = {(draw.record.dataset, draw.record.id) for step in draws for draw in step}
    assert seen == {
        *(("heart", f"p{n}") for n in set(range(6)) - tested - also),
        *(("other", f"o{n}") for n in set(range(9)) - tested - also),
    }
    assert len(tested) == 3


@pytest.mark.parametrize("others", [None, ("heart",)])
def test_test_patients_of_a_dataset_that_is_not_drawn_are_held_out_too(record, manifest, others):
    split = SplitConfig(test=0.5, seed=1)
    heart = manifest(*[record(f"p{n}", fingerprints=(f"scan {n}",)) for n in range(6)])
    copies = [record(f"o{n}", dataset="other", labelled=False, fingerprints=(f"scan {n}",)) for n in range(9)]
    other = manifest(*copies)
    changes = {"datasets": ("other",), "exclude_test": split, "exclude_test_of": others}
    tested = {int(patient[1:]) for patient in split_manifest(heart, split).test}

    schedule = Schedule({"heart": heart, "other": other}, CONFIG.model_copy(update=changes), 0, 8)
    alone = Schedule({"other": other}, CONFIG.model_copy(update={**changes, "exclude_test_of": ()}), 0, 8)

    left = {f"o{n}" for n in set(range(9)) - tested}
    assert schedule.case_ids() == {"other": tuple(sorted(left))}
    assert {draw.record.id for step in all_draws(schedule, 40) for draw in step} == left
    assert schedule.tasks == ("other",)
    assert len(tested) == 3
    assert len(alone.case_ids()["other"]) == 9


def test_folds_and_files_leave_datasets_without_labels_alone(record, manifest, tmp_path):
    heart = manifest(*[record(f"p{n}") for n in range(6)])
    bare = manifest(*[record(f"b{n}", dataset="bare", labelled=False) for n in range(3)])
    (tmp_path / "split.json").write_text(
        '{"heart": {"train": ["p0", "p1", "p2", "p3"], "test": ["p4", "p5"]}}'
    )
    folds, file = SplitConfig(folds=3, fold=1), SplitConfig(file=str(tmp_path / "split.json"))

    for split in (folds, file):
        config = CONFIG.model_copy(update={"exclude_test": split})
        schedule = Schedule({"heart": heart, "bare": bare}, config, 0, 8)
        ids = schedule.case_ids()
        assert ids["bare"] == ("b0", "b1", "b2")
        assert set(ids["heart"]) == {f"p{n}" for n in range(6)} - set(split_manifest(heart, split).test)
        assert len(ids["heart"]) == 4


@pytest.mark.parametrize(
    ("margin", "expected"), [(0.0, (4, 8, 8)), (0.1, (5, 9, 9)), (0.25, (5, 10, 10)), (0.5, (6, 12, 12))]
)
def test_regions_are_larger_by_the_margin(margin, expected):
    assert region_shape(CONFIG.model_copy(update={"margin": margin})) == expected


def test_a_margin_that_fits_exactly_is_not_rounded_up():
    assert region_shape(SamplingConfig(patch_size=(10, 30, 70), margin=0.1)) == (11, 33, 77)


def test_unknown_datasets_are_refused(manifests):
    with pytest.raises(ConfigError) as error:
        Schedule(manifests, CONFIG.model_copy(update={"datasets": ("liver",)}), 0, 8)

    assert str(error.value) == "sampling.datasets names 'liver'; the store has brain, heart, lung"

    excluding = {"exclude_test": SplitConfig(), "exclude_test_of": ("heart", "liver")}
    with pytest.raises(ConfigError) as error:
        Schedule(manifests, CONFIG.model_copy(update=excluding), 0, 8)

    assert str(error.value) == "sampling.exclude_test_of names 'liver'; the store has brain, heart, lung"


def test_an_empty_store_is_refused():
    with pytest.raises(ConfigError) as error:
        Schedule({}, CONFIG, 0, 8)

    assert str(error.value) == "there is no case to draw from in the store"


def test_annotations_move_no_region(record, manifest):
    """Else pretraining would know where a structure is in patients whose labels fine-tuning may not use."""
    tissue = {"any": ((4, 4, 4), (20, 10, 30))}
    drawn = []
    for structures in ({}, {"1": ((25, 25, 5),) * 9, "2": ((1, 28, 2),)}):
        cases = [
            record(f"h{n}", f"p{n}", "heart", (30, 30, 40), True, 1, {**structures, **tissue})
            for n in range(6)
        ]
        schedule = Schedule({"heart": manifest(*cases)}, CONFIG.model_copy(update={"foreground": 1.0}), 3, 8)
        drawn.append([schedule.draw(step, index).region for step in range(10) for index in range(8)])

    assert drawn[0] == drawn[1]
