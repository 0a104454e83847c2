"""Hosts with a network of their own, all on this machine: namespaces, joined by a bridge in yet another one.

    with Network(folder, ("head", "one")) as network:
        network.serve("head", "ray", "start", "--head", "--block", until="started", environment={...})
        subprocess.run(network.words("one", "ping", "-c", "1", "head"))
        network.unplug("one")

A host has a name that the others know, an address, processes, shared memory and a home of its own, and its
own of the folder `local`; all other files are the machine's. No packet leaves: there is no way from these
hosts to the machine or past it, nor back. The namespaces have no names (as `ip netns` gives). Each lasts as
long as the process that holds it; what runs in it ends with that one, which ends with the process that
started it, even if that is killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import psutil

START_TIMEOUT_S = 300.0
_END_TIMEOUT_S = 60.0
_COMMAND_TIMEOUT_S = 60.0
_PROGRAMS = ("ip", "nsenter", "setpriv", "unshare")
_SUBNET = "198.18.0"  # of those that RFC 2544 sets aside for tests
_DIES_ALONG = ("setpriv", "--pdeathsig", "KILL", "--")
_UNSHARE = (*_DIES_ALONG, "unshare", "--fork", "--kill-child", "--net", "--pid", "--mount", "--uts", "--ipc")
_UNSHARE_ALL = (*_UNSHARE, "--mount-proc", "sh", "-euc")
# Whoever loses its parent becomes the child of this process, which never waits: so the system is told to.
_HOLD = """
trap '' CHLD
hostname "$1"
mount --bind "$2" /etc/hosts
mount --bind "$3" "$4"
mount -t tmpfs none /dev/shm
ip link set lo up
echo held
exec sleep infinity
"""
_PROBE = """
mount -t tmpfs none /dev/shm
ip link add name bridge type bridge
ip link add name to-one type veth peer name eth0
"""


def missing() -> str | None:
    """Why this machine cannot have such hosts; None if it can."""
    lacking = [name for name in _PROGRAMS if shutil.which(name) is None]
    if lacking:
        return f"there is no {lacking[0]} to make hosts with"
    done = subprocess.run(
        [*_UNSHARE_ALL, _PROBE], capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False
    )
    reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return f"no network namespaces can be made here: {reason}" if done.returncode else None


class Network:
    """Context manager of running hosts. What they say is in `folder`, where their homes are, too.

    `local` is a path that is another folder on each of them.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder, self._names = folder, tuple(names)
        self.local = Path(tempfile.mkdtemp(prefix="host-", dir="/tmp"))  # paths of sockets have to be short
        self._held: dict[str, psutil.Process] = {}
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End all that runs on them, and with that the hosts."""
        for first in self._held.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                first.kill()
        for process in self._processes:
            try:
                process.wait(_END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._held.clear()
        shutil.rmtree(self.local, ignore_errors=True)

    # -------------------------------------------------------------------------------------------- what is run

    def words(self, host: str, *command: str) -> list[str]:
        """The command that runs `command` there; it is killed when that one is."""
        here = ("nsenter", "--target", str(self._held[host].pid), "--all", "--", *_DIES_ALONG)
        return [*here, "env", f"HOME={self.home(host)}", *command]

    def serve(
        self, host: str, *command: str, until: str, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start a command there, and return once it has said `until`. Raises RuntimeError if it does not."""
        with self._log(host).open("ab") as stream:
            process = subprocess.Popen(
                self.words(host, *command),
                env={**environment, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )
        self._processes.append(process)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while until not in (said := self._log(host).read_text()):
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"{command[0]} does not run on {host}: {said[-2000:]}")
            time.sleep(0.2)
        return process

    def home(self, host: str) -> Path:
        """Its home, as seen from everywhere."""
        return self._folder / host / "home"

    def address(self, host: str) -> str:
        """Its address, which its name stands for on all of them."""
        return f"{_SUBNET}.{self._names.index(host) + 1}"

    def unplug(self, host: str) -> None:
        """Take its link down at the bridge. The others are not told: nothing comes any more, that is all."""
        self._at_bridge("ip", "link", "set", f"to-{host}", "down")

    def plug(self, host: str) -> None:
        """Take it up again."""
        self._at_bridge("ip", "link", "set", f"to-{host}", "up")

    # ----------------------------------------------------------------------------------------- how it is made

    def _make(self) -> None:
        known = "".join(f"{self.address(name)} {name}\n" for name in self._names)
        hosts = self._folder / "hosts"
        hosts.write_text(f"127.0.0.1 localhost\n{known}")
        for name in ("bridge", *self._names):
            local = self._folder / name / "local"
            local.mkdir(parents=True)
            self.home(name).mkdir()
            self._hold(name, [name, str(hosts), str(local), str(self.local)])
        self._at_bridge("ip", "link", "add", "name", "bridge", "type", "bridge")
        self._at_bridge("ip", "link", "set", "bridge", "up")
        for name in self._names:
            peer = ("peer", "name", "eth0", "netns", str(self._held[name].pid))
            self._at_bridge("ip", "link", "add", "name", f"to-{name}", "type", "veth", *peer)
            self._at_bridge("ip", "link", "set", f"to-{name}", "up", "master", "bridge")
            self._set_up(name, "ip", "address", "add", f"{self.address(name)}/24", "dev", "eth0")
            self._set_up(name, "ip", "link", "set", "eth0", "up")

    def _hold(self, name: str, words: Sequence[str]) -> None:
        """Start the process that the namespaces of a host belong to."""
        with self._log(name).open("ab") as log:
            holder = subprocess.Popen(
                [*_UNSHARE_ALL, _HOLD, "sh", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self._processes.append(holder)
        assert holder.stdout is not None
        with holder.stdout as said:
            if said.readline() != b"held\n":
                raise RuntimeError(f"the host {name!r} could not be made: {self._log(name).read_text()}")
        (self._held[name],) = psutil.Process(holder.pid).children()

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _at_bridge(self, *command: str) -> None:
        self._set_up("bridge", *command)

    def _set_up(self, name: str, *command: str) -> None:
        # Of its namespaces the network's alone: process ids are the machine's.
        words = ["nsenter", "--target", str(self._held[name].pid), "--net", "--", *command]
        subprocess.run(words, check=True, timeout=_COMMAND_TIMEOUT_S)


def inherited() -> dict[str, str]:
    """This process's environment, without what leads to servers and caches of its own machine."""
    own = ("RAY_", "HSSL_", "AWS_", "MLFLOW_", "XDG_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(own)}
    return {**kept, "PYTHONPATH": str(Path(__file__).parents[1]), "PATH": _path()}


def _path() -> str:
    """Programs of this environment come first, as where it is activated."""
    return os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
