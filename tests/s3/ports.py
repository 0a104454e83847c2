"""Ports of loopback for servers that have to be told theirs before they start."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice

# Nothing holds a port until its server has it. So it is none that the system gives to a connection that goes
# out or to who asks for any (from 32768, ip(7)), and none of Ray's workers, which are 10002 to 19999.
_RANGE = range(20_000, 32_768)
_ANY = random.SystemRandom()  # tests that seed the other one would all get the same ports


def free_ports(count: int) -> list[int]:
    """Ports that nothing has; all are held until all are known. Raises RuntimeError where there are none."""
    with ExitStack() as held:
        ports = list(islice(_held(held), count))
    if len(ports) < count:
        raise RuntimeError(f"loopback has {len(ports)} free ports of {_RANGE}, not {count}")
    return ports


def free_port() -> int:
    """A port that nothing has."""
    return free_ports(1)[0]


def _held(held: ExitStack) -> Iterator[int]:
    for port in _ANY.sample(_RANGE, len(_RANGE)):
        probe = held.enter_context(socket.socket())
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            probe.close()
            continue
        yield port
