"""Manifests whose cases stay in their file: what is checked when, and what happens to the file meanwhile."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest

from hssl_dist.errors import CorruptError, StoreError
from hssl_dist.records import CaseRecord, Manifest, StoredObject, content_hash
from hssl_dist.store import case_columns, read_manifest, read_whole_manifest, write_manifest
from hssl_dist.store.sealed import Seal
from tests.case_records import header, record


def cases(count: int = 5) -> list[CaseRecord]:
    return [
        record(
            f"case{n}",
            patient=f"p{n // 2}",
            task=f"task{n % 3}",
            labelled=n % 2 == 0,
            fingerprints=(f"scan{n % 4}",),
            objects=(StoredObject(path=f"case{n}.zarr/0/c", size_bytes=1, sha256="0"),),
        )
        for n in range(count)
    ]


def path_of(root: Path) -> Path:
    return root / "liver" / "manifest.jsonl"


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def write_lines(root: Path, change: Callable[[list[dict[str, object]]], object]) -> str:
    """A manifest of five cases after a change of its lines' values, with a seal that holds."""
    write_manifest(str(root), header(), cases())
    values = [json.loads(line) for line in path_of(root).read_bytes().splitlines()[:-1]]
    change(values)
    text = "".join(f"{json.dumps(value)}\n" for value in values)
    seal = Seal(lines=len(values), sha256=hashlib.sha256(text.encode()).hexdigest())
    path_of(root).write_text(f"{text}{seal.to_json()}\n")
    return str(path_of(root))


def test_a_manifest_is_a_sequence_of_the_records_it_was_written_from(tmp_path):
    written = cases()
    whole = write_manifest(str(tmp_path), header(), written)

    read = read_manifest(str(tmp_path), "liver")

    assert len(read.cases) == 5
    assert list(read.cases) == written
    assert [read.cases[n] for n in range(-5, 5)] == written + written
    assert read.cases[1:4] == tuple(written[1:4])
    assert read.cases[::-1] == tuple(written[::-1])
    assert list(reversed(read.cases)) == written[::-1]
    assert written[3] in read.cases
    assert record("other") not in read.cases
    with pytest.raises(IndexError):
        read.cases[5]
    assert read == whole
    assert whole == read
    assert read == read_manifest(str(tmp_path), "liver")
    assert read.cases != tuple(written[:4])
    assert read.cases != tuple(written[::-1])
    assert repr(read.cases) == f"<5 cases of {path_of(tmp_path)}>"


def test_a_pickle_holds_the_records(tmp_path):
    write_manifest(str(tmp_path), header(), cases())
    read = read_manifest(str(tmp_path), "liver")

    text = pickle.dumps(read)
    path_of(tmp_path).unlink()

    assert pickle.loads(text) == read
    assert isinstance(pickle.loads(text).cases, tuple)


def test_columns_are_those_of_the_records(tmp_path):
    write_manifest(str(tmp_path), header(), cases())
    shuffled = [cases()[n] for n in (3, 1, 4, 0, 2)]

    noted = case_columns(read_manifest(str(tmp_path), "liver").cases)
    made = case_columns(tuple(shuffled))

    for columns, records in ((noted, cases()), (made, shuffled)):
        for name in ("patient", "task", "group"):
            names = getattr(columns, f"{name}s")
            assert list(names.values) == sorted({getattr(case, name) for case in records})
            assert [names.values[n] for n in names.numbers] == [getattr(case, name) for case in records]
        assert columns.labelled.tolist() == [case.labelled for case in records]
        assert [records[n].id for n in columns.by_id] == sorted(case.id for case in records)
        assert columns.scan_cases.tolist() == [0, 1, 2, 3, 4]
        marks = [case.fingerprints[0] for case in records]
        same = [[one == other for other in marks] for one in marks]
        np.testing.assert_array_equal(columns.scans[:, None] == columns.scans, same)


def test_a_manifest_that_is_replaced_is_read_on_as_it_was(tmp_path):
    write_manifest(str(tmp_path), header(), cases())
    read = read_manifest(str(tmp_path), "liver")

    write_manifest(str(tmp_path), header(), cases(2))
    path_of(tmp_path).unlink()

    assert list(read.cases) == cases()


def test_a_manifest_that_is_changed_in_place_is_an_error(tmp_path):
    write_manifest(str(tmp_path), header(), cases())
    path = path_of(tmp_path)
    read = read_manifest(str(tmp_path), "liver")
    data = path.read_bytes()

    with path.open("r+b") as stream:
        stream.write(data.replace(b'"key":"case3"', b'"key":"case4"'))

    assert list(read.cases[:3]) == cases()[:3]
    with pytest.raises(CorruptError) as error:
        read.cases[3]
    assert str(error.value) == f"{path} was changed in place while it was open; start again"
    os.truncate(path, 10)
    with pytest.raises(CorruptError, match="was changed in place"):
        read.cases[0]


def test_the_file_is_closed_with_the_last_who_reads_it(tmp_path):
    write_manifest(str(tmp_path), header(), cases())
    gc.collect()
    before = open_files()

    read = [read_manifest(str(tmp_path), "liver") for _ in range(10)]
    assert [manifest.cases[0].id for manifest in read] == ["case0"] * 10
    during = open_files()
    read.clear()

    assert during == before + 10
    assert open_files() == before


def test_a_remote_manifest_is_read_once_and_kept(tmp_path):
    root = f"memory://{content_hash(str(tmp_path))[:16]}"
    write_manifest(root, header(), cases())

    read = read_manifest(root, "liver")
    fsspec.filesystem("memory").rm(root, recursive=True)

    assert list(read.cases) == cases()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: lines[3].update(labelled="perhaps"), r"is no manifest of format 1 \(case 3\)"),
        (lambda lines: lines[1].pop("patient"), r"is no manifest of format 1 \(case 1\)"),
        (
            lambda lines: lines[5].update(objects=[{"size_bytes": 1}]),
            r"is no manifest of format 1 \(case 5\)",
        ),
        (lambda lines: lines[0].update(format=2), r"is no manifest of format 1 \(its header\)"),
        (list.clear, r"is no manifest of format 1 \(its header\)"),
        (
            lambda lines: lines[2].update(dataset="lung"),
            "lists case 'case1' of dataset 'lung'",
        ),
        (lambda lines: lines.insert(1, lines[5]), "lists case 'case0' after 'case4', which is not sorted"),
        (lambda lines: lines.insert(1, lines[1]), "lists case 'case0' after 'case0', which is not sorted"),
        (lambda lines: lines[1].update(id="../x", objects=[]), "the name '../x' cannot name an object"),
    ],
)
def test_a_manifest_that_is_none_is_refused_at_once(tmp_path, change, words):
    path = write_lines(tmp_path, change)

    with pytest.raises(StoreError, match=words) as error:
        read_manifest(str(tmp_path), "liver")

    assert path in str(error.value)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "case0.zarr", "case0.zarr/", "case0.zarr//0", "case0.zarr/./0", "case0.zarr/.."]
)
def test_unclean_paths_are_refused(tmp_path, path):
    write_lines(tmp_path, lambda lines: lines[1].update(objects=[{"path": path}]))

    with pytest.raises(StoreError, match=r"is outside of its case case0\.zarr; do not use it"):
        read_manifest(str(tmp_path), "liver")


@pytest.mark.parametrize("path", ["case0.zarr/.zattrs", "case0.zarr/a..b/...", "case0.zarr/0/c/1"])
def test_clean_paths_are_taken(tmp_path, path):
    write_lines(
        tmp_path,
        lambda lines: lines[1].update(objects=[{"path": path, "size_bytes": 1, "sha256": "0"}]),
    )

    assert read_manifest(str(tmp_path), "liver").cases[0].objects[0].path == path


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.update(more=1),
        lambda line: line.update(split="neither"),
        lambda line: line["geometry"].update(shape=[1, 2]),
        lambda line: line.update(foreground={"1": [[1, 2, "x"]]}),
    ],
)
def test_the_rest_of_a_line_is_checked_when_its_record_is_asked_for(tmp_path, change):
    path = write_lines(tmp_path, lambda lines: change(lines[2]))
    words = f"{path} is no manifest of format 1 (case 2); preprocess the dataset again"

    manifest = read_manifest(str(tmp_path), "liver")

    assert manifest.cases[0] == cases()[0]
    with pytest.raises(CorruptError) as error:
        manifest.cases[1]
    assert str(error.value) == words
    with pytest.raises(CorruptError) as error:
        read_whole_manifest(str(tmp_path), "liver")
    assert str(error.value) == words


def test_a_manifest_without_cases_has_none(tmp_path):
    write_manifest(str(tmp_path), header(), [])

    manifest = read_manifest(str(tmp_path), "liver")

    assert manifest == Manifest(header(), (), manifest.sha256)
    assert not manifest.cases
