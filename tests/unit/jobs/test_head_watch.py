"""A driver notices that its Ray head is gone: a warning first, an error if it lasts."""

from __future__ import annotations

import io
import socket
import time

import pytest

from hssl_dist.console import Console
from hssl_dist.errors import WorkerError
from hssl_dist.jobs.cluster import HeadWatch


def listening(port: int = 0) -> socket.socket:
    head = socket.socket()
    head.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    head.bind(("127.0.0.1", port))
    head.listen(16)
    return head


def test_a_head_that_goes_is_told_and_one_that_comes_back_is_forgiven() -> None:
    head, stream = listening(), io.StringIO()
    port = head.getsockname()[1]
    watch = HeadWatch(f"127.0.0.1:{port}", Console(stream), look_s=0.0, lost_s=0.3)
    watch.check()
    assert stream.getvalue() == ""
    head.close()
    watch.check()
    watch.check()
    warning = (
        f"warning: the Ray head at 127.0.0.1:{port} does not answer (Connection refused): waiting 0.3 s\n"
    )
    assert stream.getvalue() == warning

    with listening(port):
        time.sleep(0.4)
        watch.check()
    watch.check()
    assert stream.getvalue() == 2 * warning
    time.sleep(0.4)
    with pytest.raises(WorkerError) as lost:
        watch.check()
    assert str(lost.value) == (
        f"the Ray head at 127.0.0.1:{port} is gone (Connection refused); start a cluster and run this again: "
        "it goes on from the newest checkpoint"
    )


def test_it_looks_now_and_then() -> None:
    head, stream = listening(), io.StringIO()
    watch = HeadWatch(f"127.0.0.1:{head.getsockname()[1]}", Console(stream), look_s=60.0)
    watch.check()
    head.close()
    watch.check()
    assert stream.getvalue() == ""


def test_a_head_that_only_ray_reaches_is_not_watched() -> None:
    head, stream = listening(), io.StringIO()
    port = head.getsockname()[1]
    head.close()
    HeadWatch(f"127.0.0.1:{port}", Console(stream), look_s=0.0, lost_s=0.0).check()
    assert stream.getvalue() == ""
