"""An HTTP proxy on loopback before an object store: it fails, hangs, cuts and slows requests when told to.

    with FaultyProxy(s3_server.endpoint) as proxy:         # clients get AWS_ENDPOINT_URL=proxy.endpoint
        rule = proxy.inject(SLOW_DOWN, times=3, method="PUT", path="commit.json")
        ...
        assert rule.hits == 3

The first rule that fits a request decides; a request that none fits goes through unchanged, its signature
with it. Whole bodies are held in memory. The proxy is threads of this process; other processes may use it.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

_UPSTREAM_TIMEOUT_S = 60.0
_BLOCK_BYTES = 1 << 16
_OF_THE_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}


@dataclass(frozen=True)
class Answer:
    """The server refuses with an S3 error; the request does not reach it."""

    status: int
    code: str


@dataclass(frozen=True)
class Hang:
    """No answer for so long, then the connection is closed; the request does not reach the server."""

    seconds: float


@dataclass(frozen=True)
class Close:
    """The connection is closed: before the request reaches the server, or, if it `arrives`, before the answer
    does; with `after_bytes`, within the answer's body.
    """

    arrives: bool = False
    after_bytes: int | None = None


@dataclass(frozen=True)
class Slow:
    """The answer comes late by `seconds`, its body at `bytes_per_s`; nothing else is wrong with it."""

    seconds: float = 0.0
    bytes_per_s: float = float("inf")


Fault = Answer | Hang | Close | Slow

INTERNAL_ERROR = Answer(500, "InternalError")
SLOW_DOWN = Answer(503, "SlowDown")
REQUEST_TIMEOUT = Answer(400, "RequestTimeout")
NO_SPACE = Answer(507, "XMinioStorageFull")


@dataclass
class Rule:
    """What happens to which requests; `hits` counts those it has happened to."""

    fault: Fault
    times: int | None
    method: str | None
    path: str
    share: float
    draw: random.Random
    hits: int = 0

    def fits(self, method: str, path: str) -> bool:
        """Whether it is this rule's turn for a request."""
        left = self.times is None or self.hits < self.times
        meant = self.method in (None, method) and self.path in path
        return left and meant and (self.share >= 1.0 or self.draw.random() < self.share)


@dataclass
class FaultyProxy:
    """Context manager of a proxy before `upstream`, `http://host:port`."""

    upstream: str
    endpoint: str = ""
    requests: int = 0
    _rules: list[Rule] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _connections: set[socket.socket] = field(default_factory=set)
    _ending: threading.Event = field(default_factory=threading.Event)

    def inject(
        self,
        fault: Fault,
        *,
        times: int | None = None,
        method: str | None = None,
        path: str = "",
        share: float = 1.0,
        seed: int = 0,
    ) -> Rule:
        """From now on a fault for the next `times` requests (all of them if not given) by `method`.

        Only those with `path` in their path and query are meant, and of them a `share`, drawn by `seed`.
        """
        rule = Rule(fault, times, method, path, share, random.Random(seed))
        with self._lock:
            self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """No faults any more; requests that hang are ended."""
        with self._lock:
            self._rules.clear()
        self._ending.set()
        self._ending = threading.Event()

    def __enter__(self) -> Self:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="faulty-proxy")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()
        self._server.shutdown()
        with self._lock:
            for connection in self._connections:
                _hang_up(connection)
        self._server.server_close()  # waits for the requests' threads
        self._thread.join()

    def fault_of(self, method: str, path: str) -> tuple[Fault | None, threading.Event]:
        """What is to happen to a request, and the event that ends its waiting."""
        with self._lock:
            self.requests += 1
            for rule in self._rules:
                if rule.fits(method, path):
                    rule.hits += 1
                    return rule.fault, self._ending
        return None, self._ending

    def opened(self, connection: socket.socket) -> None:
        """A client's connection, which the end of the proxy closes."""
        with self._lock:
            self._connections.add(connection)

    def closed(self, connection: socket.socket) -> None:
        """A client's connection that is no more."""
        with self._lock:
            self._connections.discard(connection)


# ---------------------------------------------------------------------------------------------------- details


class _Server(ThreadingHTTPServer):
    proxy: FaultyProxy
    daemon_threads = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that have gone away, as those do that were closed on, are no errors."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


@dataclass(frozen=True)
class _Whole:
    """A whole answer of the server."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.proxy.opened(self.connection)

    def finish(self) -> None:
        self.server.proxy.closed(self.connection)
        super().finish()

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""

    def _proxy(self) -> None:
        body = self._body()
        fault, ending = self.server.proxy.fault_of(self.command, self.path)
        match fault:
            case Answer():
                self._send(_refusal(fault))
            case Hang():
                ending.wait(fault.seconds)
                self._close()
            case Close(arrives=False, after_bytes=None):
                self._close()
            case Close(after_bytes=None):
                self._ask(body)
                self._close()
            case Close(after_bytes=count):
                self._send(self._ask(body), up_to=count)
                self._close()
            case Slow():
                answer = self._ask(body)
                ending.wait(fault.seconds)
                self._send(answer, bytes_per_s=fault.bytes_per_s)
            case None:
                self._send(self._ask(body))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _proxy

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        parts = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _ask(self, body: bytes) -> _Whole:
        """The server's answer to this request."""
        host, port = urlsplit(self.server.proxy.upstream).hostname, urlsplit(self.server.proxy.upstream).port
        assert host is not None
        upstream = http.client.HTTPConnection(host, port, timeout=_UPSTREAM_TIMEOUT_S)
        try:
            # The client signed the proxy's own address as the host: it must arrive as it was sent.
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in _passed(dict(self.headers.items())):
                upstream.putheader(name, value)
            if body or self.command in ("PUT", "POST"):
                upstream.putheader("Content-Length", str(len(body)))
            upstream.endheaders(body or None)
            answer = upstream.getresponse()
            headers = _passed(dict(answer.getheaders()))
            if self.command == "HEAD" and (length := answer.getheader("Content-Length")) is not None:
                headers.append(("Content-Length", length))
            return _Whole(answer.status, answer.reason, headers, answer.read())
        finally:
            upstream.close()

    def _send(self, answer: _Whole, up_to: int | None = None, bytes_per_s: float = float("inf")) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.headers:
            self.send_header(name, value)
        if self.command != "HEAD" and answer.status not in (204, 304):
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        for start in range(0, len(answer.body[:up_to]), _BLOCK_BYTES):
            block = answer.body[:up_to][start : start + _BLOCK_BYTES]
            self.wfile.write(block)
            time.sleep(len(block) / bytes_per_s)

    def _close(self) -> None:
        self.close_connection = True
        _hang_up(self.connection)


def _passed(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """The headers that are of the message, not of the connection."""
    return [(name, value) for name, value in headers.items() if name.lower() not in _OF_THE_CONNECTION]


def _refusal(fault: Answer) -> _Whole:
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{fault.code}</Code><Message>injected {fault.code}</Message></Error>"
    )
    return _Whole(fault.status, fault.code, [("Content-Type", "application/xml")], text.encode())


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the client may have been faster
        connection.shutdown(socket.SHUT_RDWR)
