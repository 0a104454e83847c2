"""The S3 server the tests stand on does what S3 does, and ends with nothing left."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from tests.s3.server import Counts, S3Server

ROOT = Path(__file__).parents[2]
PART_BYTES = 5 << 20


def test_put_get_and_ranges(s3_environment: S3Server, s3_bucket: str) -> None:
    client, bucket = s3_environment.client(), s3_bucket.removeprefix("s3://")
    data = secrets.token_bytes(100_000)
    client.put_object(Bucket=bucket, Key="a b/ü.bin", Body=data)
    assert client.get_object(Bucket=bucket, Key="a b/ü.bin")["Body"].read() == data
    answer = client.get_object(Bucket=bucket, Key="a b/ü.bin", Range="bytes=10-19")
    assert answer["Body"].read() == data[10:20]
    assert answer["ContentRange"] == "bytes 10-19/100000"
    assert client.get_object(Bucket=bucket, Key="a b/ü.bin", Range="bytes=-5")["Body"].read() == data[-5:]
    client.delete_object(Bucket=bucket, Key="a b/ü.bin")
    with pytest.raises(client.exceptions.NoSuchKey):
        client.get_object(Bucket=bucket, Key="a b/ü.bin")


def test_multipart(s3_environment: S3Server, s3_bucket: str) -> None:
    client, bucket = s3_environment.client(), s3_bucket.removeprefix("s3://")
    parts = [secrets.token_bytes(PART_BYTES), b"the end"]
    upload = client.create_multipart_upload(Bucket=bucket, Key="big")["UploadId"]
    sent = [
        client.upload_part(Bucket=bucket, Key="big", UploadId=upload, PartNumber=number, Body=body)["ETag"]
        for number, body in enumerate(parts, start=1)
    ]
    assert "Contents" not in client.list_objects_v2(Bucket=bucket)
    listed = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(sent, start=1)]
    client.complete_multipart_upload(
        Bucket=bucket, Key="big", UploadId=upload, MultipartUpload={"Parts": listed}
    )
    answer = client.get_object(Bucket=bucket, Key="big", Range=f"bytes={PART_BYTES - 2}-{PART_BYTES + 2}")
    assert answer["Body"].read() == parts[0][-2:] + b"the"


def test_listings_come_in_pages(s3_environment: S3Server, s3_bucket: str) -> None:
    client, bucket = s3_environment.client(), s3_bucket.removeprefix("s3://")
    names = [f"p/{number:02}" for number in range(25)]
    for name in [*names, "q/other"]:
        client.put_object(Bucket=bucket, Key=name, Body=b"x")
    pages = list(client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="p/", MaxKeys=10))
    assert [len(page["Contents"]) for page in pages] == [10, 10, 5]
    assert [item["Key"] for page in pages for item in page["Contents"]] == names
    folders = client.list_objects_v2(Bucket=bucket, Delimiter="/")["CommonPrefixes"]
    assert [item["Prefix"] for item in folders] == ["p/", "q/"]


def test_put_only_if_absent(s3_environment: S3Server, s3_bucket: str) -> None:
    client, bucket = s3_environment.client(), s3_bucket.removeprefix("s3://")
    client.put_object(Bucket=bucket, Key="once", Body=b"first", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(Bucket=bucket, Key="once", Body=b"second", IfNoneMatch="*")
    assert client.get_object(Bucket=bucket, Key="once")["Body"].read() == b"first"


def test_a_wrong_key_is_rejected(s3_environment: S3Server, s3_bucket: str) -> None:
    client = s3_environment.client(secret_key="wrong")
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client.list_objects_v2(Bucket=s3_bucket.removeprefix("s3://"))


def test_unsigned_requests_need_a_public_bucket(s3_environment: S3Server, s3_bucket: str) -> None:
    client, bucket = s3_environment.client(), s3_bucket.removeprefix("s3://")
    client.put_object(Bucket=bucket, Key="k", Body=b"public")
    url = f"{s3_environment.endpoint}/{bucket}/k"
    with pytest.raises(urllib.error.HTTPError, match="403") as refused:
        urllib.request.urlopen(url, timeout=10)
    refused.value.close()
    client.put_bucket_acl(Bucket=bucket, ACL="public-read")
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.read() == b"public"
    request = urllib.request.Request(url, data=b"mine", method="PUT")
    with pytest.raises(urllib.error.HTTPError, match="403") as refused:
        urllib.request.urlopen(request, timeout=10)
    refused.value.close()


def test_counts(s3_environment: S3Server, s3_bucket: str) -> None:
    client, bucket = s3_environment.client(), s3_bucket.removeprefix("s3://")
    client.put_object(Bucket=bucket, Key="k", Body=bytes(1000))
    before = s3_environment.counts(s3_bucket)
    for start in (0, 500):
        client.get_object(Bucket=bucket, Key="k", Range=f"bytes={start}-{start + 99}")["Body"].read()
    client.head_object(Bucket=bucket, Key="k")
    assert s3_environment.counts(s3_bucket) - before == Counts({"GET": 2, "HEAD": 1}, 200)
    assert s3_environment.counts("s3://nobody-asked") == Counts()
    assert s3_environment.counts().requests["GET"] >= 2


def test_what_is_stored_outlives_the_server(tmp_path: Path) -> None:
    with S3Server(tmp_path) as server:
        client = server.client()
        client.create_bucket(Bucket="kept")
        client.put_object(Bucket="kept", Key="k", Body=b"still here")
        first = server.pids
    with S3Server(tmp_path) as server:
        assert server.client().get_object(Bucket="kept", Key="k")["Body"].read() == b"still here"
        second = server.pids
    for pid in (*first.values(), *second.values()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_lost_process_is_named(tmp_path: Path) -> None:
    with S3Server(tmp_path) as server:
        assert server.ended() is None
        os.kill(server.pids["object"], signal.SIGKILL)
        deadline = time.monotonic() + 10
        while (said := server.ended()) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert said is not None
        assert said.startswith("object ended with status -9")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_developer_starts_and_ends_it(tmp_path: Path, number: signal.Signals) -> None:
    started = subprocess.Popen(
        [sys.executable, "-m", "tests.s3", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert started.stdout is not None
        lines = [started.stdout.readline() for _ in range(6)]
        exported = dict(line.removeprefix("export ").strip().split("=", 1) for line in lines)
        with urllib.request.urlopen(f"{exported['AWS_ENDPOINT_URL']}/healthcheck", timeout=10) as answer:
            assert answer.read() == b"OK"
        started.send_signal(number)
        _, said = started.communicate(timeout=30)
    finally:
        started.kill()
        started.wait()
    assert (started.returncode, said) == (0, "serving; Ctrl-C ends it\n")
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{exported['AWS_ENDPOINT_URL']}/healthcheck", timeout=10)


def test_servers_end_with_a_killed_parent(tmp_path: Path) -> None:
    started = subprocess.Popen(
        [sys.executable, "-m", "tests.s3", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert started.stdout is not None
        endpoint = started.stdout.readline().strip().partition("=")[2]
    finally:
        started.kill()
        started.communicate()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{endpoint}/healthcheck", timeout=5).close()
        except OSError:
            return
        time.sleep(0.1)
    pytest.fail("the proxy outlived the process that started it")
