"""A store on a real S3 server, behind a proxy with faults: written, read, trained on."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from hssl_dist import files
from hssl_dist.config.parts import CacheConfig, StoreConfig
from hssl_dist.console import Console
from hssl_dist.errors import HsslError, StorageError, StoreError
from hssl_dist.jobs import pretrain
from hssl_dist.records import Manifest
from hssl_dist.store import open_reader, read_manifest, read_records, verify
from hssl_dist.training.checkpoint import CheckpointStore
from tests.faulty_proxy import (
    INTERNAL_ERROR,
    REQUEST_TIMEOUT,
    SLOW_DOWN,
    Close,
    Fault,
    FaultyProxy,
    Rule,
    Slow,
)
from tests.tiny_pretraining import job_config, write_store
from tests.tiny_store import write_blobs

CLIENT_ATTEMPTS, ATTEMPTS = 4, 16
"""At a request by the client, and by all that stands above it."""
FAULTS = [INTERNAL_ERROR, SLOW_DOWN, REQUEST_TIMEOUT, Close(), Close(arrives=True), Slow(seconds=0.3)]


def contents(root: str) -> dict[str, bytes]:
    """The bytes of everything below a folder, by path."""
    return {files.relative(url, root): files.read(url) for url in files.walk(root)}


def inject(proxy: FaultyProxy, faults: list[Fault], times: int, method: str, path: str = "") -> list[Rule]:
    return [proxy.inject(fault, times=times, method=method, path=path) for fault in faults]


# --------------------------------------------------------------------------------------------------- one file


def test_a_request_that_fails_for_ever_is_tried_so_often_and_names_the_object(
    s3_bucket: str, proxy: FaultyProxy
) -> None:
    url = files.join(s3_bucket, "a", "object")
    for method, use in (("PUT", lambda: files.write(url, b"x")), ("GET", lambda: files.read(url))):
        rule = proxy.inject(SLOW_DOWN, method=method, path="a/object")
        with pytest.raises(StorageError) as failed:
            use()
        assert str(failed.value).startswith(f"{url}: the object storage failed or does not answer: ")
        assert "\n" not in str(failed.value)
        assert rule.hits == ATTEMPTS
        proxy.clear()


def test_an_answer_that_is_cut_is_fetched_again(s3_bucket: str, proxy: FaultyProxy) -> None:
    url, data = files.join(s3_bucket, "object"), bytes(range(256)) * 4096
    files.write(url, data)
    for use in (lambda: files.read(url), lambda: files.open_read(url).read()):
        rule = proxy.inject(Close(after_bytes=100_000), times=2, method="GET", path="object")
        assert use() == data
        assert rule.hits == 2
        proxy.clear()


# ------------------------------------------------------------------------------------------------------ cases


def test_a_few_faults_change_no_byte_of_a_store(s3_bucket: str, proxy: FaultyProxy) -> None:
    whole, disturbed = files.join(s3_bucket, "whole"), files.join(s3_bucket, "disturbed")
    write_blobs(whole, patients=2)
    rules = inject(proxy, FAULTS, 2, "PUT", "disturbed/blobs/p")
    rules += inject(proxy, FAULTS, 1, "PUT", "disturbed/blobs/records/")
    rules += inject(proxy, FAULTS, 1, "PUT", "disturbed/blobs/manifest.jsonl")
    write_blobs(disturbed, patients=2)
    assert all(rule.hits == rule.times for rule in rules), rules
    assert contents(disturbed) == contents(whole)


@pytest.mark.parametrize("part", ["p0.zarr/0/c/", "records/p0.jsonl"])
def test_a_case_whose_objects_never_arrive_does_not_exist(
    s3_bucket: str, proxy: FaultyProxy, part: str
) -> None:
    proxy.inject(INTERNAL_ERROR, method="PUT", path=f"blobs/{part}")
    with pytest.raises(StoreError) as failed:
        write_blobs(s3_bucket, patients=1)
    said = str(failed.value)
    assert said.startswith(
        f"case 'p0' of 'blobs' could not be written to {s3_bucket}/blobs: {s3_bucket}/blobs/{part}"
    )
    assert "\n" not in said
    proxy.clear()
    assert read_records(s3_bucket, "blobs", ["p0_b", "p0", "u"]).keys() == {"p0_b"}
    assert "manifest.jsonl" not in files.listing(files.join(s3_bucket, "blobs"))
    write_blobs(s3_bucket, patients=1)
    assert verify(s3_bucket, "blobs") > 0


# ---------------------------------------------------------------------------------------------------- reading


@pytest.fixture
def blobs(s3_bucket: str, proxy: FaultyProxy) -> Manifest:
    return write_blobs(s3_bucket, patients=1)


@pytest.mark.parametrize("fault", [*FAULTS, Close(after_bytes=40)], ids=str)
def test_a_reader_outlasts_a_fault(s3_bucket: str, proxy: FaultyProxy, blobs: Manifest, fault: Fault) -> None:
    expected = open_reader(s3_bucket).image(blobs.cases[0])
    rules = inject(proxy, [fault], 1, "GET", "/0/c/")
    rules += inject(proxy, [fault], 1, "GET", "/0/zarr.json")
    rules += inject(proxy, [fault], 1, "GET", "manifest.jsonl")
    record = read_manifest(s3_bucket, "blobs").cases[0]
    assert record == blobs.cases[0]
    np.testing.assert_array_equal(open_reader(s3_bucket).image(record), expected)
    assert all(rule.hits == 1 for rule in rules), rules


def test_a_pretraining_outlasts_faults_and_is_the_same(
    s3_bucket: str, proxy: FaultyProxy, tmp_path: Path
) -> None:
    """Without a cache, so that every step reads from the store."""
    write_store(s3_bucket)

    def weights(name: str) -> bytes:
        there = {"store": StoreConfig(url=s3_bucket), "cache": CacheConfig(max_bytes=0, chunk_bytes=0)}
        assert pretrain.run(job_config(tmp_path, name, **there), Console(io.StringIO())).status == "done"
        return (tmp_path / "runs" / name / "model" / "model.safetensors").read_bytes()

    undisturbed = weights("undisturbed")
    rules = inject(proxy, [*FAULTS, Close(after_bytes=40)], 2, "GET", "/0/c/")
    rules += inject(proxy, [SLOW_DOWN, Close(after_bytes=40)], 1, "GET", "zarr.json")
    rules += inject(proxy, [INTERNAL_ERROR, Close(after_bytes=40)], 1, "GET", "manifest.jsonl")
    assert weights("disturbed") == undisturbed
    assert all(rule.hits == rule.times for rule in rules), rules


def test_a_pretraining_that_cannot_read_ends_in_one_line_and_resumes(
    s3_bucket: str, proxy: FaultyProxy, tmp_path: Path
) -> None:
    write_store(s3_bucket)
    there = {"store": StoreConfig(url=s3_bucket), "cache": CacheConfig(max_bytes=0, chunk_bytes=0)}
    config = job_config(tmp_path, "ended", **there)
    proxy.inject(INTERNAL_ERROR, method="GET", path="heart/case_1.zarr/0/c/")
    with pytest.raises(HsslError) as failed:
        pretrain.run(config, Console(io.StringIO()))
    assert isinstance(failed.value, StorageError)
    said = str(failed.value)
    assert f"{s3_bucket}/heart/case_1.zarr/0/c/0/0/0/0: the object storage failed or does not answer" in said
    assert "\n" not in said
    proxy.clear()
    assert pretrain.run(config, Console(io.StringIO())).status == "done"
    assert CheckpointStore(str(tmp_path / "runs" / "ended" / "checkpoints")).latest() == 7
