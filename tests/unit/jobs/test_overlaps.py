"""Which cases of a store show the same scan."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from hssl_dist.console import Console
from hssl_dist.jobs.overlaps import find_overlaps
from hssl_dist.store import write_manifest
from tests.case_records import header, record

SILENT = Console(io.StringIO())


@pytest.fixture
def stored(tmp_path):
    """`stored(dataset, {case: (patient, *fingerprints)})`: the manifest of such a dataset in the store."""

    def build(dataset, cases):
        records = [
            record(case, dataset=dataset, patient=patient, fingerprints=marks, objects=())
            for case, (patient, *marks) in cases.items()
        ]
        return write_manifest(str(tmp_path), header(dataset=dataset), records)

    return build


def pairs(found, dataset):
    return {item.other: item.pairs for item in found[dataset]}


def test_names_that_are_equal_and_scans_that_differ_are_no_overlap(tmp_path, stored):
    manifests = {name: stored(name, {"patient001": ("p", f"{name} 1")}) for name in ("a", "b")}
    assert find_overlaps(str(tmp_path), manifests, SILENT) == {"a": (), "b": ()}


def test_one_channel_in_common_is_enough(tmp_path, stored):
    manifests = {
        "a": stored("a", {"a1": ("p", "x", "y"), "a2": ("q", "z")}),
        "b": stored("b", {"b1": ("p", "y"), "b2": ("r", "own")}),
    }
    found = find_overlaps(str(tmp_path), manifests, SILENT)
    assert pairs(found, "a") == {"b": (("a1", "b1"),)}
    assert pairs(found, "b") == {"a": (("b1", "a1"),)}
    assert found["a"][0].summary() == {"dataset": "b", "cases": [["a1", "b1"]]}
    assert str(found["a"][0]).startswith(
        "scans are in the dataset b, too (a1 = b1): training patients of one"
    )


def test_within_a_dataset_only_different_patients_count(tmp_path, stored):
    cases = {"1": ("p", "x"), "2": ("p", "x"), "3": ("q", "x"), "4": ("r", "y"), "5": ("s", "y")}
    found = find_overlaps(str(tmp_path), {"a": stored("a", cases)}, SILENT)
    assert pairs(found, "a") == {"a": (("1", "3"), ("4", "5"))}
    assert str(found["a"][0]).startswith("patients share scans (1 = 3, 4 = 5): splits keep such patients")


def test_datasets_that_are_only_in_the_store_count_and_a_damaged_one_is_told(tmp_path, stored):
    stored("old", {"o": ("p", "x")})
    stored("torn", {"t": ("p", "x")})
    Path(tmp_path, "torn/manifest.jsonl").write_bytes(b"torn")
    said = io.StringIO()
    found = find_overlaps(str(tmp_path), {"new": stored("new", {"n": ("p", "x")})}, Console(said))
    assert list(found) == ["new"]
    assert pairs(found, "new") == {"old": (("n", "o"),)}
    assert "torn/manifest.jsonl" in said.getvalue()
    assert "its scans were not compared with those of the other datasets" in said.getvalue()
