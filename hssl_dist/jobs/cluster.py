"""The Ray cluster a job runs on: the one it is in, the one the config names, or a local one.

A local cluster lives as long as the context. It listens on loopback alone, and there its ports are closed to
others by a token that only this process and its children know (in the environment, never on disk), unless
`RAY_AUTH_MODE` says otherwise.
"""

from __future__ import annotations

import math
import os
import secrets
import signal
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hssl_dist.errors import HsslError, Interrupted, MissingError, WorkerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hssl_dist.config.parts import RayConfig
    from hssl_dist.console import Console

_KNOCK_TIMEOUT_S = 10.0
_LOOK_S, _HEAD_LOST_S = 2.0, 40.0
_RESUMES = "start a cluster and run this again: it goes on from the newest checkpoint"
_OBJECT_STORE_BYTES = 256 << 20  # jobs exchange records and metrics through it, never volumes or weights


@contextmanager
def connect(config: RayConfig, console: Console) -> Iterator[None]:
    """Ray is connected inside the context; only what this call started or joined is left at its end.

    A connection this process already has is used as it is. Otherwise `config.address`, then `RAY_ADDRESS`
    (set for the entrypoints of cluster jobs) name a running cluster; without either a local one is started.
    Raises MissingError if no cluster answers at the address or lets this process in, and WorkerError if a
    local one does not start.
    """
    address = config.address or os.environ.get("RAY_ADDRESS")
    # Read by `import ray` itself, so before it; and it takes half a second, so only when a job needs it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        # A cluster of one node, as Ray has it on systems other than Linux: it listens on loopback alone.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    with _sigterm_kept():
        if address is None:
            _start_local(config, console, options)
        else:
            _join(address, console, options)
    try:
        yield
    finally:
        ray.shutdown()


class HeadWatch:
    """Looks, in a driver, whether the head at an address still answers, every `look_s` seconds.

    Ray would end the process by force, without a word to it, a minute after the head is gone.
    """

    def __init__(
        self, address: str, console: Console, look_s: float = _LOOK_S, lost_s: float = _HEAD_LOST_S
    ) -> None:
        self._address, self._console = address, console
        self._look_s, self._lost_s = look_s, lost_s
        self._next_s = 0.0
        self._silent_since_s: float | None = None
        try:
            _knock(address)
        except OSError:  # Ray has another way there
            self._next_s = math.inf

    def check(self) -> None:
        """To be called often; says once that the head does not answer. Raises WorkerError if that lasts."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + self._look_s
        try:
            _knock(self._address)
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            self._silent_since_s = None
            return
        if self._silent_since_s is None:
            self._silent_since_s = now_s
            self._console.warn(
                f"the Ray head at {self._address} does not answer ({reason}): waiting {self._lost_s:g} s"
            )
        elif now_s - self._silent_since_s >= self._lost_s:
            raise WorkerError(f"the Ray head at {self._address} is gone ({reason}); {_RESUMES}")


@contextmanager
def cluster_losses() -> Iterator[None]:
    """Turns what Ray raises inside, where only a lost cluster explains it, into a WorkerError of one line."""
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayTaskError:
        raise
    except RayError as error:
        reason = str(error).strip().partition("\n")[0]
        raise WorkerError(f"the Ray cluster is lost ({reason}); {_RESUMES}") from error


def task_resources(cpus: int, *, gpu: bool = True) -> dict[str, float]:
    """What a task asks of the connected cluster: so many CPUs and, with `gpu`, a GPU where there are any.

    Never more than the largest node has: Ray would let the task wait for ever.
    """
    import ray

    nodes: list[dict[str, Any]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    most = {kind: max(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
    return {
        "num_cpus": min(cpus, max(1, int(most["CPU"]))),
        "num_gpus": min(1.0, most["GPU"]) if gpu else 0.0,
    }


def most_memory_bytes() -> int:
    """The memory of the connected cluster's largest node: a task that asks for more would wait for ever."""
    import ray

    nodes: list[dict[str, Any]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return int(max(node.get("memory", 0) for node in nodes))


def result(reference: Any, kept: str) -> Any:
    """What a task returned. Raises the package's errors and Interrupted as the task did, and WorkerError,
    which says what is `kept`, if its worker was lost.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, HsslError | Interrupted):
            raise error.cause from None
        raise
    except RayError as error:  # a worker that crashed, was killed, or ran out of memory
        reason = str(error).strip().partition("\n")[0]
        raise WorkerError(f"a Ray worker was lost ({reason}); {kept}") from error


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Connecting, Ray takes SIGTERM for itself, to exit at once; a handler of before gets it back."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _join(address: str, console: Console, options: dict[str, Any]) -> None:
    import ray

    try:
        _knock(address)
        ray.init(address=address, **options)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        # Ray's own is a plain one, a socket's of a class below it: something listens, but lets nobody in.
        if type(error) is ConnectionError:
            raise MissingError(
                f"no Ray cluster lets this process in at {address!r} ({reason}); set RAY_AUTH_MODE and "
                "RAY_AUTH_TOKEN as on its nodes, or leave ray.address and RAY_ADDRESS out for a local one"
            ) from error
        raise MissingError(
            f"no Ray cluster answers at {address!r} ({reason}); start one, or leave ray.address and "
            "RAY_ADDRESS out for a local one"
        ) from error
    console.say(f"joined the Ray cluster at {address}")


def _knock(address: str) -> None:
    """Raise OSError if nothing listens at `host:port`: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_TIMEOUT_S).close()


def _start_local(config: RayConfig, console: Console, options: dict[str, Any]) -> None:
    import ray

    # Ray's ports run any code they are sent. Ray turns its token on by itself; given one in the environment
    # it does not write ~/.ray/auth_token.
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # Without the dashboard its agent fills the log with complaints; it costs 1.7 s and answers on loopback.
    try:
        ray.init(
            address="local",
            num_cpus=config.num_cpus,
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=True,
            **options,
        )
    except Exception as error:  # Ray raises plain ones, and what its processes and the system say
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise WorkerError(
            f"Ray did not start on this machine ({reason}); its logs are in {_logs()}: mend what they say, "
            "or wait until the machine is less busy, and run it again"
        ) from error
    cpus = ray.cluster_resources()["CPU"]  # type: ignore[no-untyped-call]
    console.say(f"started Ray on this machine with {cpus:.0f} CPUs")


def _logs() -> str:
    """Where Ray keeps the logs of the cluster that it started last on this machine."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return str(Path(folder) / "ray" / "session_latest" / "logs")
