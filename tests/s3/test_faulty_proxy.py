"""The tests' own faulty proxy: what it lets through is unchanged, and its faults are what they say."""

from __future__ import annotations

import http.client
import secrets
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from hssl_dist import files
from tests.faulty_proxy import INTERNAL_ERROR, SLOW_DOWN, Close, FaultyProxy, Hang, Slow
from tests.s3.server import S3Server

MB = 1 << 20


class Echo(BaseHTTPRequestHandler):
    """Answers with the method, the path, the host it was asked as, and the body."""

    protocol_version = "HTTP/1.1"
    seen: list[str]

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append(self.path)  # type: ignore[attr-defined]
        said = f"{self.command} {self.path} {self.headers['Host']} ".encode() + body
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_GET = do_PUT

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


@pytest.fixture
def seen() -> list[str]:
    """Paths of the requests that reached the server."""
    return []


@pytest.fixture
def proxy(seen: list[str]) -> Iterator[FaultyProxy]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    server.seen = seen  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        with FaultyProxy(f"http://127.0.0.1:{server.server_address[1]}") as proxy:
            yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(proxy: FaultyProxy, path: str = "/a", body: bytes = b"body") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(proxy.endpoint).netloc, timeout=30)
    try:
        connection.request("PUT", path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_without_faults_requests_go_through_unchanged(proxy: FaultyProxy, seen: list[str]) -> None:
    host = urlsplit(proxy.endpoint).netloc
    assert ask(proxy, "/a%20b?c=d", b"x" * MB) == (200, f"PUT /a%20b?c=d {host} ".encode() + b"x" * MB)
    assert (proxy.requests, seen) == (1, ["/a%20b?c=d"])


def test_a_rule_hits_the_next_requests_that_it_fits(proxy: FaultyProxy, seen: list[str]) -> None:
    other = proxy.inject(SLOW_DOWN, method="GET")
    rule = proxy.inject(INTERNAL_ERROR, times=2, method="PUT", path="commit")
    assert ask(proxy, "/model")[0] == 200
    for _ in range(2):
        status, said = ask(proxy, "/commit")
        assert status == 500
        assert b"<Code>InternalError</Code>" in said
    assert ask(proxy, "/commit")[0] == 200
    assert (rule.hits, other.hits, seen) == (2, 0, ["/model", "/commit"])


def test_a_share_of_the_requests_is_drawn_by_the_seed(proxy: FaultyProxy) -> None:
    def statuses(seed: int) -> list[int]:
        proxy.clear()
        proxy.inject(INTERNAL_ERROR, share=0.5, seed=seed)
        return [ask(proxy)[0] for _ in range(20)]

    assert statuses(1) == statuses(1) != statuses(2)
    assert set(statuses(1)) == {200, 500}


def test_closed_connections(proxy: FaultyProxy, seen: list[str]) -> None:
    proxy.inject(Close(), times=1)
    proxy.inject(Close(arrives=True), times=1)
    proxy.inject(Close(after_bytes=3), times=1)
    with pytest.raises(http.client.RemoteDisconnected):
        ask(proxy, "/lost")
    assert seen == []
    with pytest.raises(http.client.RemoteDisconnected):
        ask(proxy, "/answer-lost")
    assert seen == ["/answer-lost"]
    with pytest.raises(http.client.IncompleteRead) as cut:
        ask(proxy, "/cut")
    assert cut.value.partial == b"PUT"
    assert ask(proxy)[0] == 200


def test_slow_and_hanging_answers(proxy: FaultyProxy, seen: list[str]) -> None:
    proxy.inject(Slow(seconds=0.2, bytes_per_s=1e6), times=1)
    start_s = time.monotonic()
    assert ask(proxy, body=bytes(200_000))[0] == 200
    assert 0.35 <= time.monotonic() - start_s < 20.0  # 0.2 s and 200 kB at 1 MB/s; sleeps may end early
    proxy.inject(Hang(300.0), times=1)
    releasing = threading.Timer(0.2, proxy.clear)
    releasing.start()
    with pytest.raises(http.client.RemoteDisconnected):
        ask(proxy, "/hangs")
    releasing.join()
    assert seen == ["/a"]


def test_signatures_and_bodies_survive_it(
    s3_environment: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, url = secrets.token_bytes(3 * MB), files.join(s3_bucket, "a b", "object")
    with FaultyProxy(s3_environment.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        files.write(url, data)
        assert files.read(url) == data
        with files.open_read(url) as stream:
            stream.seek(MB)
            assert stream.read(10) == data[MB : MB + 10]
        assert files.listing(s3_bucket) == ["a b"]
        files.remove(files.join(s3_bucket, "a b"))
        assert not files.exists(url)
        assert proxy.requests >= 6
