"""A port that a server of the tests is told is nobody's, and nobody is given it before the server has it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.s3 import ports


def test_they_are_none_that_the_system_gives_away():
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found = ports.free_ports(200)
    assert len(set(found)) == 200
    assert max(found) < first


def test_what_is_taken_is_left_out(monkeypatch: pytest.MonkeyPatch):
    three = sorted(ports.free_ports(3))
    monkeypatch.setattr(ports, "_RANGE", three)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", three[1]))
        assert sorted(ports.free_ports(2)) == [three[0], three[2]]
        with pytest.raises(RuntimeError, match="has 2 free ports"):
            ports.free_ports(3)
    assert sorted(ports.free_ports(3)) == three
