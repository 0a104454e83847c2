"""A real S3 server for the tests: OpenStack Swift with `s3api`, as processes of its own on loopback.

Everything is below one folder. Account, container, object and proxy server (and memcached, where the machine
has it) are started and ended here, by their recorded pids; they also end when their parent is killed.
Swift lives in an environment of its own, `.venv/s3`, made by `make setup`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.s3.ports import free_ports

ACCESS_KEY = "test:tester"
SECRET_KEY = "testing1234"
REGION = "us-east-1"

_ENVIRONMENT = Path(sys.prefix) / "s3"
_SWIFT_SIDE = Path(__file__).with_name("swift_side.py")
_BACKENDS = ("account", "container", "object")
_START_TIMEOUT_S = 240.0
_END_TIMEOUT_S = 10.0
_PROBE_TIMEOUT_S = 10.0
_ATTEMPTS = 3  # a free port may be taken by another before the server has it

_COMMON = """\
[DEFAULT]
bind_ip = {host}
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
disable_fallocate = true
fallocate_reserve = 0
log_level = WARNING
conn_timeout = 10
node_timeout = 60
"""

_BACKEND = """
[pipeline:main]
pipeline = {kind}-server

[app:{kind}-server]
use = egg:swift#{kind}
log_requests = false
container_update_timeout = 60
"""

_PROXY = """
[pipeline:main]
pipeline = counting catch_errors gatekeeper healthcheck {cache} unsigned s3api admit_unsigned tempauth
    copy slo proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
error_suppression_limit = 1000000
conn_timeout = 10
node_timeout = 60
recoverable_node_timeout = 60

[filter:counting]
paste.filter_factory = swift_side:counting

[filter:unsigned]
paste.filter_factory = swift_side:unsigned

[filter:admit_unsigned]
paste.filter_factory = swift_side:admit_unsigned

[filter:catch_errors]
use = egg:swift#catch_errors

[filter:gatekeeper]
use = egg:swift#gatekeeper

[filter:healthcheck]
use = egg:swift#healthcheck

[filter:cache]
use = egg:swift#memcache
memcache_servers = {memcached}

[filter:s3api]
use = egg:swift#s3api
location = {region}

[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret} .admin
user_test_anonymous = unused

[filter:copy]
use = egg:swift#copy

[filter:slo]
use = egg:swift#slo
"""


@dataclass(frozen=True)
class Counts:
    """What the server was asked for and sent, of one bucket or of all."""

    requests: Counter[str] = field(default_factory=Counter)
    bytes_sent: int = 0

    def __sub__(self, earlier: Counts) -> Counts:
        return Counts(self.requests - earlier.requests, self.bytes_sent - earlier.bytes_sent)


class S3Server:
    """Context manager of a running server. What it stores in `folder` is there again when started anew.

    It answers on `host` at `port`, or at a free one; what is behind it on loopback alone.
    """

    def __init__(
        self, folder: Path, secret_key: str = SECRET_KEY, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.folder = folder
        self._host, self._port = host, port
        self.access_key, self.secret_key, self.region = ACCESS_KEY, secret_key, REGION
        self.endpoint = ""
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """The variables every S3 client reads."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of what is running, by name."""
        return {name: process.pid for name, process in self._processes.items()}

    def counts(self, bucket: str | None = None) -> Counts:
        """Requests by method and bytes sent since the start: of a bucket (`s3://name`, `name`), or of all."""
        with urllib.request.urlopen(f"{self.endpoint}/.counts", timeout=_PROBE_TIMEOUT_S) as answer:
            raw = json.load(answer)
        wanted = raw if bucket is None else [bucket.removeprefix("s3://").partition("/")[0]]
        found = [raw[name] for name in wanted if name in raw]
        requests: Counter[str] = Counter()
        for item in found:
            requests.update(item["requests"])
        return Counts(requests, sum(item["bytes_sent"] for item in found))

    def client(self, secret_key: str | None = None) -> Any:
        """A plain S3 client (botocore's), which shares nothing with the clients under test."""
        from botocore.session import Session

        return Session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=secret_key or self.secret_key,
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start, and wait until all answer. Raises RuntimeError with the end of a log if one does not."""
        self._check_machine()
        for attempt in range(_ATTEMPTS):
            try:
                self._start_once()
                return
            except RuntimeError:
                self.stop()
                if attempt == _ATTEMPTS - 1:
                    raise

    def stop(self) -> None:
        """End what was started: SIGTERM, and SIGKILL for what is still there after ten seconds."""
        processes = list(self._processes.values())
        for process in reversed(processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _END_TIMEOUT_S
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def ended(self) -> str | None:
        """A line on a process that has ended by itself; None while all are running."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                return f"{name} ended with status {process.returncode}: {self._log(name)}"
        return None

    def _check_machine(self) -> None:
        if not (_ENVIRONMENT / "bin" / "python").exists():
            raise RuntimeError(f"there is no S3 server at {_ENVIRONMENT}; `make setup` makes it")
        (self.folder / "devices" / "disk").mkdir(parents=True, exist_ok=True)
        try:
            os.setxattr(self.folder, "user.hssl", b"1")
        except OSError as error:
            raise RuntimeError(
                f"the file system of {self.folder} keeps no extended attributes ({error.strerror}), which "
                "Swift needs; set TMPDIR or --basetemp to a folder on ext4, xfs or btrfs"
            ) from None

    def _start_once(self) -> None:
        memcached = shutil.which("memcached")
        names = [*_BACKENDS, "proxy", *(["memcached"] if memcached else [])]
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        ports["proxy"] = self._port or ports["proxy"]
        self._configure(ports)
        rings = [f"{kind}={ports[kind]}" for kind in _BACKENDS]
        made = self._spawn("rings", "rings", str(self.folder), *rings)
        if made.wait(_START_TIMEOUT_S) != 0:
            raise RuntimeError(f"the rings could not be made: {self._log('rings')}")
        pid = str(os.getpid())
        if memcached:
            arguments = ["-l", "127.0.0.1", "-p", str(ports["memcached"]), "-U", "0", "-m", "32"]
            user = ["-u", "root"] if os.getuid() == 0 else []
            self._processes["memcached"] = self._spawn("memcached", "run", pid, memcached, *arguments, *user)
        for kind in (*_BACKENDS, "proxy"):
            config = str(self.folder / f"{kind}.conf")
            self._processes[kind] = self._spawn(kind, "serve", pid, kind, config)
        self.endpoint = f"http://127.0.0.1:{ports['proxy']}"
        self._wait(ports)

    def _configure(self, ports: dict[str, int]) -> None:
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        (self.folder / "swift.conf").write_text(
            "[swift-hash]\nswift_hash_path_prefix = tests\nswift_hash_path_suffix = tests\n"
        )
        proxy = _PROXY.format(
            cache="cache" if "memcached" in ports else "",
            memcached=f"127.0.0.1:{ports.get('memcached', 0)}",
            region=REGION,
            secret=self.secret_key,
        )
        for kind in (*_BACKENDS, "proxy"):
            host = self._host if kind == "proxy" else "127.0.0.1"
            common = _COMMON.format(host=host, port=ports[kind], user=user, folder=self.folder)
            text = common + (proxy if kind == "proxy" else _BACKEND.format(kind=kind))
            (self.folder / f"{kind}.conf").write_text(text)

    def _wait(self, ports: dict[str, int]) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        waiting = list(ports)
        while waiting:
            if (lost := self.ended()) is not None:
                raise RuntimeError(lost)
            waiting = [name for name in waiting if not _answers(name, ports[name])]
            if waiting and time.monotonic() > deadline:
                raise RuntimeError(f"{waiting[0]} does not answer: {self._log(waiting[0])}")
            time.sleep(0.05)

    def _spawn(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """A command of `swift_side`, its output in `name.log`."""
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TMPDIR") if key in os.environ}
        environment = {**kept, "PYTHONPATH": str(_SWIFT_SIDE.parent), "PYTHONWARNINGS": "ignore"}
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [str(_ENVIRONMENT / "bin" / "python"), str(_SWIFT_SIDE), *words],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the process that started them; it ends them in order
            )

    def _log(self, name: str) -> str:
        lines = (self.folder / f"{name}.log").read_text(errors="replace").splitlines()
        return " | ".join(lines[-5:]) or "its log is empty"


def _answers(name: str, port: int) -> bool:
    try:
        if name != "proxy":
            socket.create_connection(("127.0.0.1", port), timeout=_PROBE_TIMEOUT_S).close()
            return True
        with urllib.request.urlopen(
            f"http://127.0.0.1:{port}/healthcheck", timeout=_PROBE_TIMEOUT_S
        ) as answer:
            return answer.status == 200
    except (OSError, urllib.error.URLError):
        return False
