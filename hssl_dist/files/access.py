"""Object storage: whose server a URL means, whether it signs, and errors that say what to do.

`s3://bucket/key` signs with the credentials of the environment's usual `AWS_*` variables and goes to the
server they name. A source may differ from that, and the difference travels in the scheme, so that whoever
gets the URL reads the same file; credentials are never part of it.

    s3+anonymous://bucket/key                      unsigned
    s3+https://host:port/bucket/key                another server
    s3+anonymous+https://host:port/bucket/key      both
"""

from __future__ import annotations

import functools
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from hssl_dist.errors import AccessError, StorageError
from hssl_dist.files.faults import Backoff, retried

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

_ATTEMPTS = 4
"""Of one request, by the client: at most 4 x 60 s and 7 s of pauses for a server that never answers."""
_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 60
_BACKOFF = Backoff()
"""Of a whole read or write, whose last attempt starts within a minute of the first."""
_PUT_BYTES = 64 << 20
"""Objects up to twice this size are one PUT; larger ones are sent in parts of it."""
_PARALLEL_PARTS = 8
_ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True)
class Place:
    """A path of object storage, `bucket/key`, and how to get there."""

    path: str
    anonymous: bool = False
    endpoint: str | None = None


def with_access(url: str, anonymous: bool, endpoint: str | None) -> str:
    """The URL of an `s3://` URL that is read unsigned, or at another server than the environment's.

    Raises ValueError for other URLs, and for an endpoint that is more than `http(s)://host[:port]`.
    """
    if not anonymous and endpoint is None:
        return url
    if not url.startswith("s3://"):
        raise ValueError(f"`anonymous` and `endpoint` are for sources on s3://, not for {url}")
    scheme = f"s3+{_ANONYMOUS}" if anonymous else "s3"
    if endpoint is None:
        return f"{scheme}://{url.removeprefix('s3://')}"
    server = check_endpoint(endpoint)
    return f"{scheme}+{server}/{url.removeprefix('s3://')}"


def check_endpoint(endpoint: str) -> str:
    """The endpoint without trailing slash. Raises ValueError if it is not `http(s)://host[:port]`."""
    server = endpoint.rstrip("/")
    parts = urlsplit(server)
    if "@" in server:
        raise ValueError("an endpoint has no user and password in it; set AWS_ACCESS_KEY_ID and the like")
    if parts.scheme not in ("http", "https") or not parts.hostname or server.count("/") != 2:
        raise ValueError(f"endpoint {endpoint!r} is not of the form https://host or https://host:port")
    return server


def parse(url: str) -> Place | None:
    """What an S3 URL in any of its forms means; None for other URLs."""
    scheme, _, path = url.partition("://")
    kind, *words = scheme.split("+")
    if kind != "s3":
        return None
    anonymous = words[:1] == [_ANONYMOUS]
    protocol = words[anonymous:]
    if not protocol:
        return Place(path, anonymous)
    host, _, path = path.partition("/")
    return Place(path, anonymous, f"{protocol[0]}://{host}")


def shown(url: str) -> str:
    """The URL as its user wrote it."""
    place = parse(url)
    return f"s3://{place.path}" if place else url


def s3_filesystem(place: Place) -> Any:
    """The s3fs file system of a place; one per process and environment, for all threads."""
    variables = frozenset((key, value) for key, value in os.environ.items() if key.startswith("AWS_"))
    return _s3_filesystem(place.anonymous, place.endpoint, variables, os.getpid())


@functools.lru_cache(maxsize=8)
def _s3_filesystem(
    anonymous: bool, endpoint: str | None, _variables: frozenset[tuple[str, str]], _pid: int
) -> Any:
    import fsspec

    retries = {"mode": "standard", "total_max_attempts": _ATTEMPTS}
    fs = fsspec.filesystem(
        "s3",
        anon=anonymous,
        endpoint_url=endpoint,
        # A listing kept is soon wrong: other processes write too.
        use_listings_cache=False,
        # fsspec would make one client per thread; this one serves all of them.
        skip_instance_cache=True,
        # Several requests for one object would first have to ask for its size.
        max_concurrency=1,
        config_kwargs={
            "retries": retries,
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "read_timeout": _READ_TIMEOUT_S,
        },
    )
    # s3fs would try five times what the client has tried four times, and a read five times that: for a server
    # that hangs an hour and a half. What the client does not try again `attempted` does.
    fs.retries = 1
    return fs


def put(fs: Any, path: str, data: bytes) -> None:
    """One PUT, or parts for what is large."""
    fs.pipe_file(path, data, chunksize=_PUT_BYTES, max_concurrency=_PARALLEL_PARTS)


def attempted(url: str, work: Callable[[], T]) -> T:
    """What `work` returns, which may be done twice: object storage that fails in a way that may pass, or cuts
    its answer, is tried again. Raises as `explained` does.
    """
    if parse(url) is None:
        return work()

    def attempt() -> T:
        with explained(url):
            return work()

    return retried(attempt, _BACKOFF)


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn what object storage and its client raise into errors of one line that hold no secrets.

    Raises AccessError if the storage refuses or no credentials are there, and StorageError if it fails or
    does not answer. FileNotFoundError and IsADirectoryError pass.
    """
    place = parse(url)
    if place is None:
        yield
        return
    from aiohttp import ClientError
    from botocore.exceptions import BotoCoreError, CredentialRetrievalError, NoCredentialsError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except (FileNotFoundError, IsADirectoryError, StorageError):
        raise
    except PermissionError as error:
        raise AccessError(_refused(place, error)) from None
    except (NoCredentialsError, CredentialRetrievalError):
        raise AccessError(
            f"{shown(url)}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or for a public "
            "source `anonymous: true`"
        ) from None
    except (OSError, BotoCoreError, ClientError, ResponseParserError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise StorageError(f"{shown(url)}: the object storage failed or does not answer: {said}") from error


def _refused(place: Place, error: PermissionError) -> str:
    response = getattr(error.__cause__, "response", {})
    code = str(response.get("Error", {}).get("Code", "403"))
    url = f"s3://{place.path}"
    if place.anonymous:
        return (
            f"{url}: not public ({code}); set `anonymous: false` and give AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    server = "the source's `endpoint`" if place.endpoint else "AWS_ENDPOINT_URL"
    return (
        f"{url}: the object storage refused ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY "
        f"and {server}"
    )
