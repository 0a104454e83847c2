"""Which faults of storage are worth another attempt, and how often and how late it comes."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from aiohttp import ClientPayloadError, ServerDisconnectedError
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
)

from hssl_dist import files
from hssl_dist.errors import AccessError, StorageError


def answered(status: int, code: str) -> StorageError:
    """What `files` raises for an answer of object storage."""
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    inner = OSError(errno.EIO, code)
    inner.__cause__ = ClientError(answer, "PutObject")
    return caused_by(inner)


def caused_by(inner: Exception) -> StorageError:
    error = StorageError("s3://bucket/key: the object storage failed or does not answer")
    error.__cause__ = inner
    return error


PASSES = [
    answered(500, "InternalError"),
    answered(503, "SlowDown"),
    answered(504, "GatewayTimeout"),
    answered(429, "TooManyRequests"),
    answered(400, "RequestTimeout"),
    caused_by(ReadTimeoutError(endpoint_url="http://x")),
    caused_by(EndpointConnectionError(endpoint_url="http://x")),
    caused_by(ConnectionClosedError(endpoint_url="http://x")),
    caused_by(ServerDisconnectedError()),
    caused_by(ClientPayloadError("cut")),
    caused_by(TimeoutError()),
    ConnectionResetError(errno.ECONNRESET, "reset"),
    TimeoutError("late"),
    OSError(errno.ESTALE, "stale"),
    OSError(errno.EIO, "input/output error"),
]
STAYS = [
    answered(507, "XMinioStorageFull"),
    answered(400, "InvalidArgument"),
    answered(403, "QuotaExceeded"),
    caused_by(NoCredentialsError()),
    AccessError("refused"),
    OSError(errno.ENOSPC, "full"),
    OSError(errno.EDQUOT, "quota"),
    OSError(errno.EFBIG, "too large"),
    PermissionError(errno.EACCES, "denied"),
    OSError(errno.EROFS, "read-only"),
    FileNotFoundError(errno.ENOENT, "gone"),
    ValueError("a bug"),
]


@pytest.mark.parametrize("error", PASSES, ids=repr)
def test_faults_that_may_pass(error: Exception) -> None:
    assert files.is_transient(error)
    assert not files.lacks_space(error)


@pytest.mark.parametrize("error", STAYS, ids=repr)
def test_faults_that_stay(error: Exception) -> None:
    assert not files.is_transient(error)


def test_no_space_is_told_apart() -> None:
    full = [error for error in STAYS if files.lacks_space(error)]
    assert full == [STAYS[0], *STAYS[5:8]]


def test_attempts_are_bounded_and_come_later_each_time() -> None:
    waits: list[float] = []
    calls = iter(range(100))

    def fail() -> None:
        raise TimeoutError(next(calls))

    backoff = files.Backoff(attempts=5, first_s=2.0, longest_s=10.0)
    with pytest.raises(TimeoutError, match=r"^4$"):
        files.retried(fail, backoff, sleep=waits.append)
    assert len(waits) == 4
    for wait, whole in zip(waits, (2.0, 4.0, 8.0, 10.0), strict=True):
        assert whole / 2 <= wait <= whole
    assert backoff.wait_s(1, 0.0) == 1.0
    assert backoff.wait_s(9, 1.0) == 10.0


def test_no_attempt_starts_too_late() -> None:
    """A server that hangs costs each attempt minutes: then there is no other."""
    now_s, starts = 0.0, []

    def hang() -> None:
        nonlocal now_s
        starts.append(now_s)
        now_s += 25.0
        raise TimeoutError

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    backoff = files.Backoff(attempts=10, first_s=2.0, longest_s=2.0, within_s=60.0)
    with pytest.raises(TimeoutError):
        files.retried(hang, backoff, sleep=sleep, clock=lambda: now_s)
    assert len(starts) == 3
    assert starts[-1] <= 60.0


def test_it_ends_with_the_first_success_and_with_a_fault_that_stays() -> None:
    waits: list[float] = []
    faults: list[Exception] = [TimeoutError(), ConnectionError()]

    def work() -> str:
        if faults:
            raise faults.pop()
        return "done"

    assert files.retried(work, files.Backoff(), sleep=waits.append) == "done"
    assert len(waits) == 2
    faults[:] = [TimeoutError(), OSError(errno.ENOSPC, "full")]
    with pytest.raises(OSError, match=r"full"):
        files.retried(work, files.Backoff(), sleep=waits.append)
    assert len(waits) == 2


def test_a_durable_file_is_written_as_others_are(tmp_path: Path) -> None:
    url = str(tmp_path / "new" / "folders" / "file")
    files.write(url, b"one", durable=True)
    files.write(url, b"two", durable=True)
    assert files.read(url) == b"two"
    assert files.listing(str(tmp_path / "new" / "folders")) == ["file"]


def test_a_failed_write_leaves_no_part_of_it(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        files.write(str(tmp_path / "file"), "not bytes", durable=True)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
