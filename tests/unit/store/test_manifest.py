"""Manifests and records: canonical, derived, checked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from hssl_dist.errors import CorruptError, MissingError, StoreError
from hssl_dist.records import Quarantined, StoredObject
from hssl_dist.store import (
    list_datasets,
    read_manifest,
    read_manifests,
    read_quarantine,
    read_records,
    release,
    withdraw,
    write_manifest,
    write_quarantined,
)


def test_a_manifest_comes_back_as_it_was_written(toy_store, header):
    root, cases = toy_store
    manifest = read_manifest(root, "toy")
    assert manifest.header == header
    assert [case.id for case in manifest.cases] == ["shards", "thin", "two channels", "unlabelled"]
    assert {case.id: case for case in manifest.cases} == {key: case.record for key, case in cases.items()}
    assert manifest.sha256 == hashlib.sha256(Path(root, "toy/manifest.jsonl").read_bytes()).hexdigest()


def test_lines_are_canonical_json_with_a_seal(toy_store):
    root, _ = toy_store
    data = Path(root, "toy/manifest.jsonl").read_bytes()
    *lines, last = data.splitlines(keepends=True)
    for line in lines:
        assert line == json.dumps(json.loads(line), sort_keys=True, separators=(",", ":")).encode() + b"\n"
    assert json.loads(last) == {"lines": 5, "sha256": hashlib.sha256(b"".join(lines)).hexdigest()}


def test_the_order_of_cases_does_not_matter_and_equal_manifests_are_not_rewritten(toy_store, header):
    root, cases = toy_store
    path = Path(root, "toy/manifest.jsonl")
    before, stat = path.read_bytes(), path.stat()
    written = write_manifest(root, header, [case.record for case in reversed(cases.values())])
    assert path.read_bytes() == before
    assert path.stat() == stat
    assert written == read_manifest(root, "toy")


def test_withdrawn_cases_leave_the_manifest_and_nothing_else(toy_store):
    root, cases = toy_store
    left = withdraw(root, read_manifest(root, "toy"), ["thin", "shards"])
    assert left == read_manifest(root, "toy")
    assert [case.id for case in left.cases] == ["two channels", "unlabelled"]
    assert set(read_records(root, "toy", cases)) == set(cases)


def test_every_damage_to_a_manifest_is_an_error_that_names_it(toy_store):
    root, _ = toy_store
    path = Path(root, "toy/manifest.jsonl")
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(data), 40):
        broken = bytearray(data)
        broken[position] ^= 1 << rng.integers(0, 7)
        path.write_bytes(bytes(broken))
        with pytest.raises(CorruptError, match=str(path)):
            read_manifest(root, "toy")
    for length in (0, 1, len(data) // 2, len(data) - 200):
        path.write_bytes(data[:length])
        with pytest.raises(CorruptError, match=str(path)):
            read_manifest(root, "toy")


def test_a_manifest_cannot_point_outside_of_its_cases(toy_store, header):
    root, cases = toy_store
    record = cases["thin"].record
    for path in ("../../secret", "thin.zarr/../../secret", "other.zarr/0/zarr.json", "/etc/passwd"):
        outside = StoredObject(path=path, size_bytes=1, sha256="0" * 64)
        write_manifest(root, header, [record.model_copy(update={"objects": (outside,)})])
        with pytest.raises(StoreError, match=r"is outside of its case thin\.zarr; do not use it"):
            read_manifest(root, "toy")


def test_datasets_are_those_with_a_manifest(toy_store, header):
    root, _ = toy_store
    Path(root, "empty").mkdir()
    other = header.model_copy(update={"dataset": "other"})
    write_manifest(root, other, [])
    assert list_datasets(root) == ["other", "toy"]
    assert set(read_manifests(root)) == {"other", "toy"}
    assert read_manifests(root, ["other"])["other"].cases == ()
    with pytest.raises(MissingError, match="preprocess the dataset 'empty' first"):
        read_manifest(root, "empty")
    with pytest.raises(MissingError, match=r"no dataset in the store .*nowhere; run `hssl preprocess` first"):
        read_manifests(f"{root}/nowhere")


def test_quarantine(tmp_path):
    root = str(tmp_path)
    assert read_quarantine(root, "toy") == {}
    case = Quarantined(id="a b", patient="a", key="k", reason="the file is cut off", sources=("a.nii.gz",))
    write_quarantined(root, "toy", case)
    assert read_quarantine(root, "toy") == {"a b": case}
    release(root, "toy", "a b")
    release(root, "toy", "never there")
    assert read_quarantine(root, "toy") == {}


def test_a_damaged_record_is_an_error_that_names_it(toy_store):
    root, _ = toy_store
    path = Path(root, "toy/records/thin.jsonl")
    path.write_text(path.read_text()[:100])
    with pytest.raises(CorruptError, match=f"{path} is no whole CaseRecord; remove it and preprocess again"):
        read_records(root, "toy", ["thin"])
