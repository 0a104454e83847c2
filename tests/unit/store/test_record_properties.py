"""Records and manifests of any content come back as they were, and their hash is that of their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hssl_dist.errors import CorruptError
from hssl_dist.records import CaseRecord, ManifestHeader, Quarantined, canonical_json, content_hash
from hssl_dist.store import (
    case_columns,
    list_datasets,
    read_manifest,
    read_quarantine,
    read_records,
    write_manifest,
    write_quarantined,
    write_record,
)
from hssl_dist.store.metadata import array_document
from hssl_dist.store.sealed import seal, unseal
from tests.case_records import header, record
from tests.depth import examples

TEXTS = st.text(max_size=8)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
IDS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\\\0\n"), min_size=1, max_size=6
).filter(lambda name: not name.startswith("."))
VOXELS = st.lists(st.tuples(*[st.integers(0, 2**40)] * 3), max_size=3).map(tuple)


def typed(value: Any) -> Any:
    """A value that equals another only if both are the same JSON: 1, 1.0 and true are three things."""
    if isinstance(value, dict):
        return {key: typed(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [typed(part) for part in value]
    return (type(value).__name__, repr(value))


def reordered(value: Any, random: Any) -> Any:
    """The same, its keys in another order at every depth."""
    if isinstance(value, dict):
        keys = random.sample(list(value), len(value))
        return {key: reordered(value[key], random) for key in keys}
    return [reordered(part, random) for part in value] if isinstance(value, list) else value


@st.composite
def records(draw: st.DrawFn, case_id: str) -> CaseRecord:
    """A record whose texts and numbers may be anything a record may hold."""
    base = record(case_id, dataset="toy")
    intensity = base.intensities[0].model_copy(
        update={key: draw(NUMBERS) for key in draw(st.sets(st.sampled_from(["mean", "scale", "background"])))}
    )
    source, stored = base.sources[0], base.objects[0]
    return base.model_copy(
        update={
            "patient": draw(TEXTS),
            "task": draw(TEXTS),
            "group": draw(TEXTS),
            "labelled": draw(st.booleans()),
            "intensities": (intensity,),
            "foreground": draw(st.dictionaries(TEXTS, VOXELS, max_size=2)),
            "voxels": draw(st.dictionaries(TEXTS, st.integers(0, 2**60), max_size=2)),
            "sources": (source.model_copy(update={"path": draw(TEXTS)}),),
            "fingerprints": tuple(draw(st.lists(TEXTS, max_size=3))),
            "key": draw(TEXTS),
            "objects": (stored.model_copy(update={"path": f"{case_id}.zarr/c"}),),
        }
    )


HEADERS = st.builds(
    lambda classes, recipe, version: header(
        dataset="toy", classes=classes, recipe=recipe, code_version=version
    ),
    st.lists(
        st.tuples(st.integers(-3, 10**30), TEXTS), max_size=3, unique_by=(itemgetter(0), itemgetter(1))
    ).map(dict),
    st.dictionaries(TEXTS, JSON, max_size=3),
    TEXTS,
)
STORES = st.tuples(
    HEADERS,
    st.lists(IDS, max_size=4, unique=True).flatmap(lambda ids: st.tuples(*(records(name) for name in ids))),
)


@given(JSON, st.randoms(use_true_random=False))
@examples(200)
def test_canonical_json_does_not_depend_on_the_order_of_keys(value, random):
    text = canonical_json(value)

    assert canonical_json(reordered(value, random)) == text
    assert canonical_json(json.loads(text)) == text
    assert typed(json.loads(text)) == typed(value)
    assert content_hash(value) == hashlib.sha256(text.encode()).hexdigest()


@given(JSON, JSON)
@examples(200)
def test_another_content_has_another_hash(one, other):
    assert (content_hash(one) == content_hash(other)) == (typed(one) == typed(other))
    assert content_hash({"a": one, "b": other}) != content_hash({"a": one})
    assert content_hash([one, other]) != content_hash([[one, other]])


@given(st.recursive(NUMBERS, lambda inner: st.lists(inner, min_size=1, max_size=3), max_leaves=4), st.data())
@examples(30)
def test_what_is_no_json_has_no_hash(value, data):
    wrong = data.draw(st.sampled_from([float("nan"), float("inf"), -float("inf")]))
    with pytest.raises(ValueError, match="Out of range float values"):
        content_hash([value, {"a": wrong}])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("store"))


@given(STORES, st.randoms(use_true_random=False))
@examples(80)
def test_a_manifest_comes_back_and_does_not_depend_on_the_order_of_its_cases(root, made, random):
    about, cases = made
    written = write_manifest(root, about, random.sample(cases, len(cases)))
    manifest = read_manifest(root, "toy")

    assert manifest == written
    assert manifest.header == about
    assert list(manifest.cases) == sorted(cases, key=lambda case: case.id)
    assert [manifest.cases[place] for place in range(-len(cases), 0)] == list(written.cases)
    assert write_manifest(root, about, cases).sha256 == manifest.sha256
    assert list_datasets(root) == ["toy"]
    noted, built = case_columns(manifest.cases), case_columns(written.cases)
    for name in ("patients", "tasks", "groups"):
        assert getattr(noted, name).values == getattr(built, name).values
        assert getattr(noted, name).numbers.tolist() == getattr(built, name).numbers.tolist()
    for name in ("by_id", "labelled", "scans", "scan_cases"):
        assert getattr(noted, name).tolist() == getattr(built, name).tolist()


@given(STORES, STORES)
@examples(80)
def test_another_manifest_has_another_hash(root, one, other):
    hashes = {write_manifest(root, *made).sha256 for made in (one, other)}
    same = typed([one[0].model_dump(), sorted(one[1], key=lambda case: case.id)]) == typed(
        [other[0].model_dump(), sorted(other[1], key=lambda case: case.id)]
    )
    assert (len(hashes) == 1) == same


@given(IDS.flatmap(records), st.data())
@examples(80)
def test_any_change_of_a_record_changes_its_manifest_s_hash(root, case, data):
    fields = ["patient", "task", "group", "key"]
    field = data.draw(st.sampled_from(fields))
    text = data.draw(TEXTS)
    assume(text != getattr(case, field))
    changed = case.model_copy(update={field: text})

    assert write_manifest(root, header(dataset="toy"), [case]).sha256 != (
        write_manifest(root, header(dataset="toy"), [changed]).sha256
    )


@given(IDS.flatmap(records), TEXTS, st.lists(TEXTS, max_size=2))
@examples(60)
def test_records_come_back(root, case, reason, sources):
    quarantined = Quarantined(
        id=case.id, patient=case.patient, key=case.key, reason=reason, sources=tuple(sources)
    )
    write_record(root, case)
    write_quarantined(root, "toy", quarantined)

    assert read_records(root, "toy", [case.id]) == {case.id: case}
    assert read_quarantine(root, "toy")[case.id] == quarantined
    assert CaseRecord.model_validate_json(case.to_json()) == case
    assert CaseRecord.model_validate_json(case.to_json()).to_json() == case.to_json()


@given(STORES, st.data())
@examples(80)
def test_a_seal_holds_for_its_lines_alone(made, data):
    about, cases = made
    sealed = seal((about, *cases))
    assert b"".join(unseal("it", sealed)) == b"".join(
        f"{item.to_json()}\n".encode() for item in (about, *cases)
    )
    assert ManifestHeader.model_validate_json(unseal("it", sealed)[0]) == about

    place = data.draw(st.integers(0, len(sealed) - 1))
    broken = bytearray(sealed)
    broken[place] ^= 1 << data.draw(st.integers(0, 7))
    stop = data.draw(st.integers(0, len(sealed) - 2))
    attempts: list[Callable[[], Any]] = [
        lambda: unseal("it", bytes(broken)),
        lambda: unseal("it", sealed[:stop]),
        lambda: unseal("it", sealed + sealed),
        lambda: unseal("it", sealed[1:]),
    ]
    for attempt in attempts:
        with pytest.raises(CorruptError, match=r"^it does not "):
            attempt()


@given(st.floats(2.0**-10, 1e30), NUMBERS)
@examples(40)
def test_the_meaning_of_numbers_survives_an_array_s_document(scale, offset):
    attributes = {"scale_factor": scale, "add_offset": offset}
    document = json.loads(
        array_document((4, 4, 4), np.dtype("int16"), (2, 2, 2), (4, 4, 4), "zyx", attributes)
    )
    assert document["attributes"] == attributes
    assert document["shape"] == [4, 4, 4]
