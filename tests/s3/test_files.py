"""Every function of `files`, on local disk, in memory and on S3; what only S3 does; whose errors say what."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
from pathlib import Path

import pytest

from hssl_dist import files
from hssl_dist.errors import AccessError, MissingError, StorageError
from tests.s3.server import S3Server

MB = 1 << 20


@pytest.fixture(params=["disk", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place of each kind."""
    if request.param == "s3":
        return f"{request.getfixturevalue('s3_bucket')}/some where"
    return str(tmp_path) if request.param == "disk" else f"memory://{secrets.token_hex(6)}"


def test_what_is_written_is_read(root: str) -> None:
    url = files.join(root, "a", "b c", "ü.bin")
    for data in (b"first", b"", secrets.token_bytes(3 * MB)):
        files.write(url, data)
        assert files.read(url) == data
        with files.open_read(url) as stream:
            assert stream.read() == data
        assert files.sha256(url) == (hashlib.sha256(data).hexdigest(), len(data))
    with files.open_read(url) as stream:
        stream.seek(2 * MB)
        assert stream.read(10) == data[2 * MB : 2 * MB + 10]
        stream.seek(-3, os.SEEK_END)
        assert (stream.read(), stream.tell()) == (data[-3:], 3 * MB)
        stream.seek(0)
        assert stream.read(5) + stream.read(2 * MB) == data[: 2 * MB + 5]


def test_exists_listing_and_walk(root: str) -> None:
    urls = [files.join(root, *path) for path in (("a", "1"), ("a", "2"), ("a", "x", "3"), ("b",))]
    for url in reversed(urls):
        files.write(url, b"x")
    assert all(files.exists(url) for url in urls)
    assert not any(files.is_folder(url) for url in urls)
    assert files.is_folder(files.join(root, "a"))
    assert files.exists(files.join(root, "a"))
    assert files.listing(files.join(root, "a")) == ["1", "2", "x"]
    assert list(files.walk(root)) == urls
    assert list(files.walk(files.join(root, "a", "x"))) == [urls[2]]


def test_what_is_not_there(root: str) -> None:
    files.write(files.join(root, "there"), b"x")
    gone = files.join(root, "gone")
    assert not files.exists(gone)
    assert not files.is_folder(gone)
    assert files.listing(gone) == []
    assert list(files.walk(gone)) == []
    files.remove(gone)
    for read in (files.read, files.open_read, files.sha256):
        with pytest.raises(FileNotFoundError):
            read(gone)
    assert files.listing(files.join(root, "ther")) == []
    assert not files.is_folder(files.join(root, "ther"))


def test_a_folder_is_no_file(root: str) -> None:
    files.write(files.join(root, "a", "1"), b"x")
    with pytest.raises((IsADirectoryError, FileNotFoundError)):
        files.open_read(files.join(root, "a"))


def test_remove_a_file_and_a_folder(root: str) -> None:
    for name in ("1", "2", "x/3", "12"):
        files.write(files.join(root, "a", name), b"x")
    files.write(files.join(root, "ab"), b"stays")
    files.remove(files.join(root, "a", "1"))
    assert files.listing(files.join(root, "a")) == ["12", "2", "x"]
    files.remove(files.join(root, "a"))
    assert files.listing(root) == ["ab"]


def test_many_small_files_are_removed_and_listed(s3_bucket: str, s3_environment: S3Server) -> None:
    client, bucket = s3_environment.client(), s3_bucket.removeprefix("s3://")
    for number in range(30):
        client.put_object(Bucket=bucket, Key=f"many/{number:03}", Body=b"")
    before = s3_environment.counts(s3_bucket)
    assert len(files.listing(files.join(s3_bucket, "many"))) == 30
    files.remove(files.join(s3_bucket, "many"))
    assert (s3_environment.counts(s3_bucket) - before).requests.total() <= 8
    assert files.listing(files.join(s3_bucket, "many")) == []


def test_what_others_write_is_seen_at_once(s3_bucket: str, s3_environment: S3Server) -> None:
    client, bucket = s3_environment.client(), s3_bucket.removeprefix("s3://")
    folder = files.join(s3_bucket, "a")
    files.write(files.join(folder, "mine"), b"x")
    assert files.listing(folder) == ["mine"]
    assert not files.exists(files.join(folder, "theirs"))
    client.put_object(Bucket=bucket, Key="a/theirs", Body=b"1")
    assert files.exists(files.join(folder, "theirs"))
    assert files.listing(folder) == ["mine", "theirs"]
    assert files.read(files.join(folder, "theirs")) == b"1"
    client.put_object(Bucket=bucket, Key="a/theirs", Body=b"22")
    assert files.sha256(files.join(folder, "theirs"))[1] == 2
    client.delete_object(Bucket=bucket, Key="a/mine")
    client.delete_object(Bucket=bucket, Key="a/theirs")
    assert not files.is_folder(folder)
    assert list(files.walk(s3_bucket)) == []


def test_one_put_per_object_and_parts_for_large_ones(s3_bucket: str, s3_environment: S3Server) -> None:
    def requests(data: bytes) -> dict[str, int]:
        before = s3_environment.counts(s3_bucket)
        files.write(files.join(s3_bucket, "object"), data)
        made = dict((s3_environment.counts(s3_bucket) - before).requests)
        assert files.sha256(files.join(s3_bucket, "object"))[0] == hashlib.sha256(data).hexdigest()
        return made

    assert requests(secrets.token_bytes(20 * MB)) == {"PUT": 1}
    assert requests(bytes(129 * MB)) == {"POST": 2, "PUT": 3}


def test_reading_takes_few_requests(s3_bucket: str, s3_environment: S3Server) -> None:
    url = files.join(s3_bucket, "object")
    files.write(url, secrets.token_bytes(20 * MB))
    before = s3_environment.counts(s3_bucket)
    files.read(url)
    assert dict((s3_environment.counts(s3_bucket) - before).requests) == {"GET": 1}
    before = s3_environment.counts(s3_bucket)
    with files.open_read(url) as stream:
        assert len(stream.read()) == 20 * MB
    assert dict((s3_environment.counts(s3_bucket) - before).requests) == {"HEAD": 1, "GET": 1}
    before = s3_environment.counts(s3_bucket)
    files.sha256(url)
    made = s3_environment.counts(s3_bucket) - before
    assert dict(made.requests) == {"HEAD": 1, "GET": 3}
    assert made.bytes_sent == 20 * MB


def test_a_wrong_key_is_one_clear_error(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = files.join(s3_bucket, "a")
    files.write(url, b"x")
    secret = secrets.token_hex(16)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    for use in (files.read, files.open_read, files.exists, files.listing, files.remove, files.is_folder):
        with pytest.raises(AccessError) as refused:
            use(url)
        assert str(refused.value).startswith(f"{url}: the object storage refused (")
        assert str(refused.value).endswith(
            "); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL"
        )
        assert refused.value.__suppress_context__
        assert secret not in repr(refused.value)
    with pytest.raises(AccessError, match="SignatureDoesNotMatch"):
        files.write(url, b"y")


def test_no_key_is_one_clear_error(s3_bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(AccessError, match="no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        files.read(files.join(s3_bucket, "a"))


def test_a_missing_bucket(s3_environment: S3Server) -> None:
    url = "s3://nobody-made-this/a"
    assert not files.exists(url)
    assert not files.is_folder(url)
    assert files.listing(url) == []
    with pytest.raises(FileNotFoundError):
        files.read(url)
    for put in (files.write, files.create):
        with pytest.raises(MissingError) as missing:
            put(url, b"x")
        assert str(missing.value) == f"{url}: there is no bucket 'nobody-made-this'; make it first"


def test_no_server_is_an_error_in_bounded_time(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # held, and not listened at
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{held.getsockname()[1]}")
        with pytest.raises(StorageError, match="failed or does not answer: Could not connect"):
            files.read(files.join(s3_bucket, "a"))
    assert issubclass(StorageError, OSError)


def test_a_public_bucket_beside_a_private_store(s3_environment: S3Server, s3_bucket: str) -> None:
    client, bucket = s3_environment.client(), s3_bucket.removeprefix("s3://")
    files.write(files.join(s3_bucket, "a", "1"), b"x")
    public = files.with_access(s3_bucket, anonymous=True, endpoint=None)
    assert public == f"s3+anonymous://{bucket}"
    url = files.join(public, "a", "1")
    with pytest.raises(AccessError) as refused:
        files.read(url)
    assert str(refused.value) == (
        f"{s3_bucket}/a/1: not public (AccessDenied); set `anonymous: false` and give AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY"
    )
    with pytest.raises(AccessError):
        files.listing(public)
    client.put_bucket_acl(Bucket=bucket, ACL="public-read")
    assert files.read(url) == b"x"
    assert list(files.walk(public)) == [url]
    assert files.relative(url, public) == "a/1"
    with pytest.raises(AccessError):
        files.write(url, b"y")
    files.write(files.join(s3_bucket, "a", "1"), b"mine")
    assert files.read(url) == b"mine"


def test_another_server_than_the_environments(
    s3_environment: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write(files.join(s3_bucket, "a", "1"), b"x")
    client, bucket = s3_environment.client(), s3_bucket.removeprefix("s3://")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    there = files.with_access(s3_bucket, anonymous=False, endpoint=s3_environment.endpoint + "/")
    assert there == f"s3+{s3_environment.endpoint}/{bucket}"
    assert files.listing(files.join(there, "a")) == ["1"]
    assert files.read(files.join(there, "a", "1")) == b"x"
    client.put_bucket_acl(Bucket=bucket, ACL="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    unsigned = files.with_access(s3_bucket, anonymous=True, endpoint=s3_environment.endpoint)
    assert list(files.walk(unsigned)) == [files.join(unsigned, "a", "1")]
    assert files.shown(unsigned) == s3_bucket


@pytest.mark.parametrize(
    "endpoint",
    [
        "127.0.0.1:80",
        "ftp://host",
        "http://",
        "https://user:password@host",
        "https://host/path",
        "s3://bucket",
    ],
)
def test_endpoints_that_are_none(endpoint: str) -> None:
    with pytest.raises(ValueError, match="endpoint") as refused:
        files.with_access("s3://bucket", anonymous=False, endpoint=endpoint)
    assert "password" not in str(refused.value).replace("no user and password", "")


def test_access_is_for_s3_alone() -> None:
    with pytest.raises(ValueError, match="are for sources on s3://, not for /data"):
        files.with_access("/data", anonymous=True, endpoint=None)
    assert files.with_access("/data", anonymous=False, endpoint=None) == "/data"
