"""Faults of storage: which of them pass by themselves, and trying again until they have.

The S3 client tries each request a few times at once, for a dropped packet or a busy moment; `retried` is for
what lasts longer, and for answers that were cut, around work that may be done twice. Where one such piece of
work holds another, their attempts multiply; their time does not, since `Backoff.within_s` bounds each.
"""

from __future__ import annotations

import errno
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from hssl_dist.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_TRANSIENT_ERRNOS = {
    errno.EAGAIN, errno.EBUSY, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EPIPE, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.ECONNABORTED,
    errno.ECONNREFUSED, errno.ECONNRESET,
}  # fmt: skip
_NO_SPACE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TRANSIENT_STATUSES = {408, 425, 429, 500, 502, 503, 504}
_NO_SPACE_STATUS = 507
# What object storage says, with a status that tells less, of a request that came in damaged or too slowly.
_TRANSIENT_CODES = {
    "BadDigest", "IncompleteBody", "OperationAborted", "RequestTimeout", "RequestTimeoutException",
    "XAmzContentSHA256Mismatch",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Backoff:
    """How often a piece of work is tried, and the seconds in between: they double, up to `longest_s`.

    Each wait is drawn between half of that and all of it, so that many processes which met the same fault do
    not come back at the same moment. No attempt starts later than `within_s` after the first.
    """

    attempts: int = 4
    first_s: float = 1.0
    longest_s: float = 30.0
    within_s: float = 60.0

    def wait_s(self, failures: int, share: float) -> float:
        """Seconds to wait after so many failures (from 1); `share` (0 to 1) is the draw."""
        whole = min(self.longest_s, self.first_s * 2.0 ** (failures - 1))
        return float(whole * (0.5 + 0.5 * share))


def retried(
    work: Callable[[], T],
    backoff: Backoff,
    *,
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """What `work` returns, tried again while it fails in a way that may pass. Raises its last error."""
    draw = random.SystemRandom().random  # no seed of a run's is touched
    last_s = clock() + backoff.within_s
    for failures in range(1, backoff.attempts):
        try:
            return work()
        except OSError as error:
            wait_s = backoff.wait_s(failures, draw())
            if not is_transient(error) or clock() + wait_s > last_s:
                raise
        sleep(wait_s)
    return work()


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help: the server failed or is busy, a connection broke, an answer was late.

    Not where space, a permission or credentials lack, nor where a request is refused for what it is.
    """
    if isinstance(error, StorageError) and error.__cause__ is not None:
        error = error.__cause__
    answered = _answer(error)
    if answered is not None:
        status, code = answered
        return code in _TRANSIENT_CODES or status in _TRANSIENT_STATUSES
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _TRANSIENT_ERRNOS
    return _is_of_a_connection(error)


def lacks_space(error: BaseException) -> bool:
    """Whether a disk is full, a quota used up, or a file larger than the process may make one."""
    if isinstance(error, StorageError) and error.__cause__ is not None:
        error = error.__cause__
    answered = _answer(error)
    if answered is not None:
        return answered[0] == _NO_SPACE_STATUS
    return isinstance(error, OSError) and error.errno in _NO_SPACE_ERRNOS


def remedy(error: BaseException) -> str:
    """What to do about storage that refused a write of a job that goes on where it was."""
    what = (
        "make room there, or raise the quota or the limit on file sizes"
        if lacks_space(error)
        else "mend the storage"
    )
    return f"{what}, and run it again: what is committed is kept"


def _answer(error: BaseException) -> tuple[int, str] | None:
    """Status and code of what object storage answered; None if the error is not of an answer."""
    for each in (error, error.__cause__):
        response: Any = getattr(each, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return int(status), str(response.get("Error", {}).get("Code", ""))
    return None


def _is_of_a_connection(error: BaseException) -> bool:
    """Whether an error of the S3 client's libraries, which share no base, is of a connection."""
    if type(error).__module__.partition(".")[0] not in ("aiobotocore", "aiohttp", "botocore"):
        return False
    from aiohttp import ClientConnectionError, ClientPayloadError
    from botocore.exceptions import ConnectionError as NoConnectionError
    from botocore.exceptions import HTTPClientError
    from botocore.parsers import ResponseParserError

    kinds = (NoConnectionError, HTTPClientError, ResponseParserError)
    return isinstance(error, (*kinds, ClientConnectionError, ClientPayloadError))
