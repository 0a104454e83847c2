"""What runs in the S3 server's own environment (`.venv/s3`): its rings, its processes, three WSGI filters.

`python swift_side.py rings FOLDER account=PORT container=PORT object=PORT` writes the three ring files;
`python swift_side.py serve PARENT_PID KIND CONFIG` is one server process, and
`python swift_side.py run PARENT_PID COMMAND...` any other; both end with their parent.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

COUNTS_PATH = "/.counts"
"""Where the proxy answers with its counts; no bucket's name starts with a dot."""
NOBODY = "test:anonymous"
"""The user unsigned requests are taken for: of the account, but with no rights beyond the buckets' ACLs."""

_MODULES = {"account": "account", "container": "container", "object": "obj", "proxy": "proxy"}
_PR_SET_PDEATHSIG = 1
_MARK = "hssl.unsigned"

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def write_rings(folder: str, ports: dict[str, int]) -> None:
    """One device, one replica, for each of account, container and object."""
    from swift.common.ring import RingBuilder

    for kind, port in ports.items():
        builder = RingBuilder(part_power=4, replicas=1, min_part_hours=0)
        device = {"region": 1, "zone": 1, "weight": 1.0, "ip": "127.0.0.1", "port": port, "device": "disk"}
        builder.add_dev({**device, "replication_ip": "127.0.0.1", "replication_port": port})
        builder.rebalance(seed=1)
        builder.get_ring().save(f"{folder}/{kind}.ring.gz")


def end_with(parent: int) -> None:
    """Let the kernel end this process, and what it may become by exec, when its parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("the parent has ended already")


def serve(kind: str, config: str) -> None:
    """Run one of Swift's servers in this process until it is signalled."""
    sys.argv = [f"swift-{kind}-server", config, "--verbose"]
    importlib.import_module(f"swift.{_MODULES[kind]}.server").main()


def counting(global_conf: dict[str, str], **conf: str) -> Callable[[Application], Application]:
    """A filter that counts requests by method, and bytes sent, of each bucket."""
    requests: defaultdict[str, Counter[str]] = defaultdict(Counter)
    sent: Counter[str] = Counter()

    def counted(bucket: str, body: Iterable[bytes]) -> Iterator[bytes]:
        try:
            for block in body:
                sent[bucket] += len(block)
                yield block
        finally:
            if (close := getattr(body, "close", None)) is not None:
                close()

    def wrap(app: Application) -> Application:
        def run(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            path = environ["PATH_INFO"]
            if path == COUNTS_PATH:
                names = set(requests) | set(sent)
                counts = {name: {"requests": requests[name], "bytes_sent": sent[name]} for name in names}
                body = json.dumps(counts).encode()
                start_response("200 OK", [("Content-Length", str(len(body)))])
                return [body]
            bucket = path.lstrip("/").partition("/")[0]
            requests[bucket][environ["REQUEST_METHOD"]] += 1
            return counted(bucket, app(environ, start_response))

        return run

    return wrap


def unsigned(global_conf: dict[str, str], **conf: str) -> Callable[[Application], Application]:
    """A filter before `s3api`, which passes unsigned requests by: it hands them over as those of `NOBODY`."""

    def wrap(app: Application) -> Application:
        def run(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            query = environ.get("QUERY_STRING", "")
            signed = "HTTP_AUTHORIZATION" in environ or "Signature=" in query
            if not signed and environ["PATH_INFO"] != "/healthcheck":
                from email.utils import formatdate

                environ["HTTP_AUTHORIZATION"] = f"AWS {NOBODY}:none"
                environ["HTTP_DATE"] = formatdate(usegmt=True)
                environ[_MARK] = True
            return app(environ, start_response)

        return run

    return wrap


def admit_unsigned(global_conf: dict[str, str], **conf: str) -> Callable[[Application], Application]:
    """A filter after `s3api`: requests that `unsigned` has marked have no signature to check."""

    def wrap(app: Application) -> Application:
        def run(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            if environ.get(_MARK) and "s3api.auth_details" in environ:
                details = environ["s3api.auth_details"]
                environ["s3api.auth_details"] = {**details, "check_signature": lambda _key: True}
            return app(environ, start_response)

        return run

    return wrap


def main(words: list[str]) -> None:
    """The commands of the module's docstring."""
    command, *rest = words
    if command == "rings":
        pairs = (word.split("=") for word in rest[1:])
        write_rings(rest[0], {kind: int(port) for kind, port in pairs})
        return
    end_with(int(rest[0]))
    if command == "serve":
        serve(rest[1], rest[2])
    else:
        os.execv(rest[1], rest[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
