import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hssl_dist.config.finetune import LabelsConfig
from hssl_dist.config.parts import SplitConfig
from hssl_dist.errors import ConfigError, MissingError
from hssl_dist.sampling import label_subset, split_manifest, split_patients
from hssl_dist.sampling.split_files import named_datasets
from hssl_dist.sampling.splits import label_order, nested_sizes, patients_showing, patients_unmarked, scans_of

names = st.sets(st.text(min_size=1, max_size=8), max_size=60)
shares = st.integers(0, 100).map(lambda percent: percent / 100)
seeds = st.integers(-5, 5)


def split_config(test, validation, seed=0):
    """Shares that add up to at most 1; together they are 1 or clearly less."""
    return SplitConfig(test=test, validation=round(validation * (1 - test), 2), seed=seed)


@given(names, shares, shares, seeds)
def test_every_patient_is_in_exactly_one_part(patients, test, validation, seed):
    split = split_patients(patients, split_config(test, validation, seed))

    assert sorted(split.train + split.validation + split.test) == sorted(patients)
    for part in (split.train, split.validation, split.test):
        assert list(part) == sorted(part)


@given(names, shares, shares, seeds)
def test_parts_have_their_share_and_at_least_one_patient(patients, test, validation, seed):
    config = split_config(test, validation, seed)
    split = split_patients(patients, config)
    train = round(1 - config.test - config.validation, 9)
    parts = ((split.train, train), (split.test, config.test), (split.validation, config.validation))

    wanted = [part for part, share in parts if share > 0]
    for place, part in enumerate(wanted):
        assert bool(part) == (len(patients) > place)
    for part, share in parts:
        assert not part or share > 0
        if len(patients) >= 3:
            assert abs(len(part) - share * len(patients)) <= 2


@given(names, shares, shares, seeds, st.randoms())
def test_order_and_repetition_of_the_patients_do_not_matter(patients, test, validation, seed, random):
    config = split_config(test, validation, seed)
    shuffled = [*patients, *list(patients)[:3]]
    random.shuffle(shuffled)

    assert split_patients(shuffled, config) == split_patients(sorted(patients), config)


@given(st.sets(st.text(min_size=1, max_size=8), min_size=6, max_size=40), seeds)
def test_a_new_patient_moves_others_only_out_of_or_into_training(patients, seed):
    newcomer, *others = sorted(patients)
    config = SplitConfig(test=0.3, validation=0.2, seed=seed)

    before, after = split_patients(others, config), split_patients(patients, config)

    assert not set(before.test) & set(after.validation)
    assert not set(before.validation) & set(after.test)
    moved = set(before.train) ^ (set(after.train) - {newcomer})
    assert len(moved) <= 2


@given(names, st.lists(st.floats(0.001, 1), min_size=2, max_size=5), seeds)
def test_label_subsets_are_nested(train, fractions, seed):
    subsets = [label_subset(train, LabelsConfig(fraction=f, seed=seed)) for f in sorted(fractions)]

    for fraction, smaller, larger in zip(
        sorted(fractions), subsets, [*subsets[1:], tuple(train)], strict=True
    ):
        assert set(smaller) <= set(larger)
        assert list(smaller) == sorted(smaller)
        assert abs(len(smaller) - max(bool(train), fraction * len(train))) <= 0.5 + 1e-9


def test_counts_are_rounded_half_up():
    patients = [f"patient{number:02}" for number in range(30)]

    split = split_patients(patients, SplitConfig(test=0.25, validation=0.05))

    assert [len(part) for part in (split.train, split.validation, split.test)] == [20, 2, 8]
    assert len(label_subset(patients, LabelsConfig(fraction=0.05))) == 2
    assert label_subset(patients, LabelsConfig(fraction=1.0)) == tuple(patients)
    assert label_subset([], LabelsConfig(fraction=0.5)) == ()


def test_the_assignment_is_the_same_for_ever():
    patients = [f"p{number}" for number in range(8)]

    split = split_patients(patients, SplitConfig(test=0.25, validation=0.25, seed=3))

    assert split.test == ("p0", "p4")
    assert split.validation == ("p3", "p7")
    assert label_subset(patients, LabelsConfig(fraction=0.25, seed=3)) == ("p2", "p4")


def test_seeds_change_the_assignment():
    patients = [f"p{number}" for number in range(30)]

    tests = {split_patients(patients, SplitConfig(seed=seed)).test for seed in range(5)}
    subsets = {label_subset(patients, LabelsConfig(fraction=0.2, seed=seed)) for seed in range(5)}

    assert len(tests) == len(subsets) == 5


def test_shares_beyond_the_whole_are_refused():
    with pytest.raises(ConfigError) as error:
        split_patients(["a"], SplitConfig(test=0.7, validation=0.4))

    assert str(error.value) == (
        "split.test 0.7 and split.validation 0.4 add up to more than 1; lower one of them"
    )


def test_a_dataset_is_split_by_its_labelled_patients(record, manifest):
    cases = [record(f"case{n}", patient=f"p{n // 2}", labelled=n < 12) for n in range(16)]

    split = split_manifest(manifest(*cases), SplitConfig(test=0.5, validation=0.0))

    assert split == split_patients([f"p{n}" for n in range(6)], SplitConfig(test=0.5, validation=0.0))
    assert len(split.test) == 3


def test_scans_find_patients_by_whatever_case(record, manifest):
    own = manifest(
        record("a1", patient="a", fingerprints=("1", "2")),
        record("a2", patient="a", fingerprints=("3",), labelled=False),
        record("b1", patient="b", fingerprints=("4",)),
        record("c1", patient="c"),
    )
    other = manifest(
        record("p1", patient="p", fingerprints=("9", "2")),
        record("q1", patient="q", fingerprints=("8",)),
        record("q2", patient="q", fingerprints=("3",), labelled=False),
        record("r1", patient="r", fingerprints=("4",)),
        record("s1", patient="s", fingerprints=("7",)),
        record("s2", patient="s"),
    )

    assert patients_showing(other, scans_of(own, ["a", "absent"])) == {"p", "q"}
    assert patients_showing(other, scans_of(own, ["b", "c"])) == {"r"}
    assert patients_showing(other, scans_of(own, ["c"])) == set()
    assert (patients_unmarked(own), patients_unmarked(other)) == ({"c"}, {"s"})


def test_patients_who_share_a_scan_stay_together(record, manifest):
    shared = {2: ("x",), 5: ("x", "y"), 8: ("y",), 11: ("z",), 0: ("z", "z")}
    cases = [record(f"c{n:02}", patient=f"p{n:02}", fingerprints=shared.get(n, (f"{n}",))) for n in range(16)]

    for seed in range(20):
        split = split_manifest(manifest(*cases), SplitConfig(test=0.3, validation=0.3, seed=seed))

        parts = {
            patient: part for part in ("train", "validation", "test") for patient in getattr(split, part)
        }
        assert sorted(parts) == [f"p{n:02}" for n in range(16)]
        assert parts["p02"] == parts["p05"] == parts["p08"]
        assert parts["p00"] == parts["p11"]
        alone = split_patients(
            (f"p{n:02}" for n in range(16) if n not in (5, 8, 11)),
            SplitConfig(test=0.3, validation=0.3, seed=seed),
        )
        assert {parts[patient] for patient in alone.test} == {"test"}


# ---------------------------------------------------------------------------------------------------- folds


def folds_of(patients, k, **changes):
    return [split_patients(patients, SplitConfig(folds=k, fold=i, **changes)) for i in range(k)]


@given(st.sets(st.text(min_size=1, max_size=8), min_size=2, max_size=40), st.data(), seeds)
def test_each_patient_is_set_aside_in_one_fold_alone(patients, data, seed):
    k = data.draw(st.integers(2, len(patients)))
    for part, other in (("test", "validation"), ("validation", "test")):
        folds = folds_of(patients, k, fold_part=part, seed=seed, test=0.2, validation=0.1)
        aside = [name for split in folds for name in getattr(split, part)]
        assert len(aside) == len(set(aside))
        assert max(len(getattr(split, part)) for split in folds) <= 1 + min(
            len(getattr(split, part)) for split in folds
        )
        for split in folds:
            assert sorted(split.train + split.validation + split.test) == sorted(patients)
            assert split.train
        if part == "test":
            assert sorted(aside) == sorted(patients)
        else:
            assert len({getattr(split, other) for split in folds}) == 1
            assert sorted(aside + list(folds[0].test)) == sorted(patients)


def test_the_first_fold_is_the_split_by_shares():
    patients = [f"p{n:02}" for n in range(40)]
    shares = split_patients(patients, SplitConfig(test=0.2, validation=0.1, seed=4))

    assert folds_of(patients, 5, validation=0.1, seed=4)[0] == shares
    assert folds_of(patients, 8, fold_part="validation", test=0.2, seed=4)[0] == shares
    validated = [set(split.validation) for split in folds_of(patients, 5, validation=0.1, seed=4)]
    tested = [set(split.test) for split in folds_of(patients, 5, validation=0.1, seed=4)]
    assert all(validated[i] < tested[i - 1] for i in range(5))


def test_folds_beyond_the_patients_are_refused():
    with pytest.raises(ConfigError, match=r"split\.folds is 5, but there are 3 patients to fold; lower it"):
        split_patients("abc", SplitConfig(folds=5))


def test_folds_beyond_a_dataset_s_patients_name_it(record, manifest):
    shared = {0: ("x",), 1: ("x",)}
    cases = [record(f"c{n}", fingerprints=shared.get(n, (f"{n}",))) for n in range(4)]

    for part in ("test", "validation"):
        with pytest.raises(ConfigError) as error:
            split_manifest(manifest(*cases), SplitConfig(folds=4, fold_part=part))
        assert str(error.value) == (
            "split.folds is 4, but dataset 'heart' has 3 labelled patients to fold, counting those who share "
            "scans as one; lower it, or leave this dataset out"
        )
        assert split_manifest(manifest(*cases), SplitConfig(folds=3, fold_part=part)).train


@pytest.mark.parametrize("changes", [{}, {"folds": 5}, {"folds": 5, "fold_part": "validation"}])
def test_nobody_is_set_aside_where_nobody_has_a_label(record, manifest, changes):
    split = split_manifest(manifest(record("c", labelled=False)), SplitConfig(**changes))

    assert (split.train, split.validation, split.test) == ((), (), ())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fold": 1}, "fold is 1, but folds is not given"),
        ({"folds": 5, "fold": 5}, "fold 5 of 5 does not exist; choose one from 0 to 4"),
        ({"folds": 5, "file": "split.json"}, "folds and file both divide the patients"),
        ({"folds": 1}, "greater than or equal to 2"),
    ],
)
def test_folds_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        SplitConfig(**changes)


# --------------------------------------------------------------------------------------------- fixed splits


@pytest.fixture
def dataset(record, manifest):
    """Patients p0 to p4, and one without a label; p0 and p1 share a scan."""
    fingerprints = {0: ("x",), 1: ("x",)}
    cases = [record(f"c{n}", patient=f"p{n}", fingerprints=fingerprints.get(n, (f"{n}",))) for n in range(5)]
    return manifest(*cases, record("c5", patient="p5", labelled=False))


def by_file(tmp_path, dataset, content):
    path = tmp_path / "split.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return split_manifest(dataset, SplitConfig(file=str(path)))


def test_a_file_divides_the_patients(tmp_path, dataset):
    lists = {"train": ["p1", "p0", "p4"], "validation": ["p3"], "test": ["p2"]}

    split = by_file(tmp_path, dataset, lists)

    assert (split.train, split.validation, split.test) == (("p0", "p1", "p4"), ("p3",), ("p2",))
    assert by_file(tmp_path, dataset, {"heart": lists, "liver": {"train": ["z"]}}) == split
    assert by_file(tmp_path, dataset, {"train": [f"p{n}" for n in range(5)]}).test == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"train": ["p0", "p1", "p9"], "validation": ["p3"], "test": ["p2", "p4", "p5"]},
            r"lists 2 patients \('p5', 'p9'\) without a labelled case in dataset 'heart'; take them out, or",
        ),
        (
            {"train": ["p0", "p1"], "test": ["p2"]},
            r"does not list 2 patients \('p3', 'p4'\) who have labelled cases in dataset 'heart'; put",
        ),
        (
            {"train": ["p0", "p1", "p3", "p4", "p2"], "test": ["p2"]},
            r"lists 1 patient \('p2'\) twice; leave each in one part",
        ),
        (
            {"train": ["p0", "p3", "p4", "p2"], "test": ["p1"]},
            r"divides 2 patients \('p0', 'p1'\) who share a scan in dataset 'heart' into train and test; put",
        ),
        (
            {"liver": {"train": ["p0"]}},
            "has no split for dataset 'heart': liver: extra inputs are not permitted",
        ),
        (
            {"train": "p0"},
            "has no split for dataset 'heart': train: input should be a valid tuple; give lists",
        ),
        ("{", "is not JSON: "),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, dataset, content, message):
    with pytest.raises(ConfigError, match=rf"split\.file .*split\.json {message}"):
        by_file(tmp_path, dataset, content)


def test_a_file_need_not_name_a_dataset_without_labels(tmp_path, record, manifest):
    bare = manifest(record("c", patient="p", labelled=False))

    for content in ({"liver": {"train": ["z"]}}, {"train": ["z"]}):
        split = by_file(tmp_path, bare, content)
        assert (split.train, split.validation, split.test) == ((), (), ())
    with pytest.raises(ConfigError, match=r"lists 1 patient \('p'\) without a labelled case in dataset"):
        by_file(tmp_path, bare, {"heart": {"test": ["p"]}})


def test_a_file_tells_which_datasets_it_names(tmp_path):
    path = tmp_path / "split.json"
    for content, names in (
        ({"train": ["a"], "test": ["b"]}, set()),
        ({"heart": {"train": ["a"]}, "liver": {}}, {"heart", "liver"}),
        ([], set()),
    ):
        path.write_text(json.dumps(content))
        assert named_datasets(str(path)) == names


def test_a_file_that_is_not_there_is_missing(dataset):
    with pytest.raises(MissingError, match=r"split\.file /nowhere\.json is not there; give the path or URL"):
        split_manifest(dataset, SplitConfig(file="/nowhere.json"))


# -------------------------------------------------------------------------------------------------- nesting


@given(names, st.floats(0.001, 1), seeds)
def test_every_subset_is_a_start_of_the_order(train, fraction, seed):
    labels = LabelsConfig(fraction=fraction, seed=seed)
    order, sizes = label_order(train, seed), nested_sizes(sorted(train), labels)

    assert list(sizes) == sorted({0.05, 0.1, 0.25, 1.0, fraction})
    for share, size in sizes.items():
        assert label_subset(train, LabelsConfig(fraction=share, seed=seed)) == tuple(sorted(order[:size]))


def test_the_order_of_labels_does_not_depend_on_the_split():
    patients = [f"p{n}" for n in range(30)]
    first, second = (split_patients(patients, SplitConfig(folds=5, fold=fold)) for fold in (0, 1))
    both = set(first.train) & set(second.train)

    orders = [[name for name in label_order(split.train, 3) if name in both] for split in (first, second)]

    assert orders[0] == orders[1]
