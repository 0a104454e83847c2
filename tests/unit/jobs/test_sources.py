"""Hashes of sources: of bytes in their roles, not of names."""

from __future__ import annotations

import hashlib
import io

import pytest

from hssl_dist import dicom
from hssl_dist.config.preprocess import DatasetConfig
from hssl_dist.console import Console
from hssl_dist.datasets import dataset_root
from hssl_dist.jobs.sources import hash_cases
from hssl_dist.records import Case, SourceFile
from tests.dicom_files import series, volume, write_files


@pytest.fixture
def hashed(tmp_path):
    """Hashes one case of the files named."""
    for name, data in {"a": b"image", "b": b"label", "copy": b"image"}.items():
        (tmp_path / name).write_bytes(data)

    def build(images, label):
        urls = tuple(f"{tmp_path}/{name}" for name in images)
        case = Case(
            "toy", "case", "case", urls, f"{tmp_path}/{label}" if label else None, ("mr",) * len(images)
        )
        [found] = hash_cases([case], str(tmp_path), Console(io.StringIO()))
        return found

    return build


def test_files_are_listed_with_size_and_hash(hashed):
    found = hashed("a", "b")
    assert found.sources == (
        SourceFile(path="a", size_bytes=5, sha256=hashlib.sha256(b"image").hexdigest()),
        SourceFile(path="b", size_bytes=5, sha256=hashlib.sha256(b"label").hexdigest()),
    )
    assert (found.id, found.size_bytes, found.problem) == ("case", 10, None)


def test_content_is_of_bytes_in_their_roles(hashed):
    content = hashed("a", "b").content
    assert hashed(("copy",), "b").content == content
    others = [hashed("b", "a"), hashed("a", None), hashed(("a", "b"), None), hashed("b", None)]
    assert len({content, *(other.content for other in others)}) == 5


def test_a_file_that_is_not_there_is_the_cases_problem(hashed):
    found = hashed(("nowhere",), "b")
    assert found.problem == "nowhere: is missing"
    assert found.content != hashed("a", "b").content


def test_a_series_is_one_source_of_all_its_bytes(tmp_path):
    def build(folder):
        case = Case("toy", "case", "case", (dicom.series_url(folder),), None, ("ct",))
        [found] = hash_cases([case], str(tmp_path), Console(io.StringIO()))
        return found

    folder = write_files(tmp_path / "scan", series(volume(3)), ["a", "b", "c"])
    (tmp_path / "scan/notes.txt").write_text("not of the series")
    found = build(folder)
    [source] = found.sources
    assert (source.path, found.problem) == ("scan", None)
    assert found.size_bytes == sum((tmp_path / "scan" / name).stat().st_size for name in "abc")
    renamed = write_files(tmp_path / "renamed", series(volume(3)), ["x", "a", "y"])
    assert build(renamed).content == found.content
    (tmp_path / "scan/c").write_bytes((tmp_path / "scan/c").read_bytes()[:-1] + b"x")
    assert build(folder).content != found.content
    (tmp_path / "scan/c").unlink()
    assert build(folder).content not in (found.content, build(renamed).content)
    (tmp_path / "scan/d.dcm").write_bytes(b"no")
    assert build(folder).problem == "d.dcm: not a DICOM file, damaged or truncated"


@pytest.mark.parametrize(
    ("source", "url"),
    [("Task01", "/data/Task01"), ("/else/Task01", "/else/Task01"), ("s3://bucket/x/", "s3://bucket/x")],
)
def test_where_a_dataset_is(source, url):
    config = DatasetConfig(name="toy", layout="msd", source=source, group="g")
    assert dataset_root(config, "/data") == url
