"""Splits of any dataset: patients and those who share their scans stay whole, whatever else is added."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hssl_dist.config.finetune import LabelsConfig
from hssl_dist.config.parts import SplitConfig
from hssl_dist.errors import ConfigError
from hssl_dist.sampling import label_subset, split_manifest
from hssl_dist.sampling.splits import label_order
from tests.case_records import record
from tests.depth import examples
from tests.unit.sampling import strategies

PARTS = ("train", "validation", "test")
DATASETS = (
    st.integers(1, 25)
    .flatmap(
        lambda count: st.lists(
            st.tuples(
                st.integers(0, 9),
                st.booleans(),
                st.lists(st.integers(0, 14), max_size=2),
            ),
            min_size=count,
            max_size=count,
        )
    )
    .map(
        lambda rows: [
            record(f"c{n:02}", patient=f"p{patient}", labelled=labelled, fingerprints=tuple(map(str, scans)))
            for n, (patient, labelled, scans) in enumerate(rows)
        ]
    )
)
UNLABELLED = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 20)), max_size=8).map(
    lambda rows: [
        record(f"u{n}", patient=f"p{patient}", labelled=False, fingerprints=(f"{scan}",))
        for n, (patient, scan) in enumerate(rows)
    ]
)


@st.composite
def ways(draw):
    """Any way to split but a file."""
    folds = draw(st.none() | st.integers(2, 4))
    test = draw(st.integers(0, 10)) / 10
    return SplitConfig(
        test=test,
        validation=draw(st.integers(0, round(10 - 10 * test))) / 10,
        seed=draw(strategies.seeds),
        folds=folds,
        fold=draw(st.integers(0, folds - 1)) if folds else 0,
        fold_part=draw(st.sampled_from(["test", "validation"])),
    )


def split_of(cases, way):
    """The split, or the error of too few patients, which is one of folds alone."""
    if way.folds is not None and 0 < len(groups_of(cases)) < way.folds:
        with pytest.raises(ConfigError, match="patients to fold"):
            split_manifest(strategies.manifest(cases), way)
        return None
    return split_manifest(strategies.manifest(cases), way)


def groups_of(cases):
    """Labelled patients by whom they share a labelled case's scan with, be it through others."""
    groups = []
    for case in cases:
        if case.labelled:
            own = {("patient", case.patient), *(("scan", scan) for scan in case.fingerprints)}
            touching = [group for group in groups if group & own]
            groups = [group for group in groups if not group & own] + [own.union(*touching)]
    return [{name for kind, name in group if kind == "patient"} for group in groups]


@given(DATASETS, ways())
@examples(150)
def test_every_labelled_patient_is_in_one_part_with_all_who_share_a_scan(cases, way):
    split = split_of(cases, way)
    if split is None:
        return
    groups = groups_of(cases)

    listed = [*split.train, *split.validation, *split.test]
    assert sorted(listed) == sorted({case.patient for case in cases if case.labelled})
    for part in PARTS:
        assert list(getattr(split, part)) == sorted(getattr(split, part))
    for group in groups:
        assert sum(bool(group & set(getattr(split, part))) for part in PARTS) == 1


@given(DATASETS, ways())
@examples(100)
def test_each_part_with_a_share_has_a_patient_as_long_as_there_are_enough(cases, way):
    split = split_of(cases, way)
    if split is None:
        return
    groups = groups_of(cases)
    counts = {part: sum(bool(group & set(getattr(split, part))) for group in groups) for part in PARTS}
    if way.folds is not None:
        folded = len(groups) - (counts["test"] if way.fold_part == "validation" else 0)
        assert counts[way.fold_part] in (folded // way.folds, -(-folded // way.folds))
        assert all(not groups or counts[part] for part in ("train", way.fold_part))
        if way.fold_part == "test":
            assert bool(counts["validation"]) == (way.validation > 0 and folded - counts["test"] > 1)
        else:
            assert bool(counts["test"]) == (way.test > 0 and len(groups) > way.folds)
        return
    shares = {
        "train": round(1 - way.test - way.validation, 9),
        "test": way.test,
        "validation": way.validation,
    }
    wanted = [part for part, share in shares.items() if share > 0]
    for place, part in enumerate(wanted):
        assert bool(counts[part]) == (len(groups) > place)
    for part, share in shares.items():
        assert share > 0 or not counts[part]


@given(DATASETS, UNLABELLED, ways(), st.data())
@examples(100)
def test_neither_order_nor_cases_without_a_label_move_a_patient(cases, unlabelled, way, data):
    split = split_of(cases, way)
    more = data.draw(st.permutations(cases + unlabelled))

    assert split_of(more, way) == split


@given(DATASETS, ways(), st.lists(st.floats(0.001, 1), min_size=1, max_size=4), strategies.seeds)
@examples(60)
def test_label_subsets_of_a_split_are_nested_starts_of_one_order(cases, way, fractions, seed):
    split = split_of(cases, way)
    if split is None:
        return
    order = label_order(split.train, seed)
    subsets = [label_subset(split.train, LabelsConfig(fraction=f, seed=seed)) for f in sorted(fractions)]

    assert sorted(order) == list(split.train)
    for smaller, larger in zip(subsets, [*subsets[1:], split.train], strict=True):
        assert set(smaller) <= set(larger)
        assert sorted(order[: len(smaller)]) == list(smaller)
        assert bool(smaller) == bool(split.train)


@pytest.fixture(scope="module")
def split_file(tmp_path_factory):
    return tmp_path_factory.mktemp("splits") / "split.json"


@given(DATASETS, ways(), st.booleans())
@examples(60)
def test_a_split_written_to_a_file_is_the_same_split(split_file, cases, way, by_name):
    split = split_of(cases, way)
    if split is None:
        return
    lists = {part: getattr(split, part) for part in PARTS if getattr(split, part)}
    content = {"liver": lists, "another": {"train": ["x"]}} if by_name else lists
    split_file.write_text(json.dumps(content))

    assert split_manifest(strategies.manifest(cases), SplitConfig(file=str(split_file))) == split
