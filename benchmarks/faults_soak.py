"""A run that is soaked: faults strike it by a plan, and it is submitted again until it is done."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults_job import Event, Job
from benchmarks.faults_plan import Fault
from benchmarks.faults_plan import Weather as Sort
from hssl_dist.cli import EXIT_STATUS
from tests.faulty_proxy import FaultyProxy, Rule
from tests.mlflow_server import MlflowServer
from tests.s3.server import S3Server
from tests.security.local_cluster import ON_LOOPBACK, LocalCluster, local_cluster, without_ray

_CLUSTERS = 5
_POLL_S = 0.1
_LOG_END = 2000


@dataclass(frozen=True)
class Servers:
    """Real servers on loopback: object storage, what stands before it and fails, tracking, a Ray cluster."""

    s3: S3Server
    proxy: FaultyProxy
    mlflow: MlflowServer
    cluster: LocalCluster

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a job among them."""
        ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.cluster.token}
        return {**without_ray(), **_behind(self.proxy, self.s3), **ON_LOOPBACK, **ours}


@contextmanager
def servers(folder: Path, cpus: int) -> Iterator[Servers]:
    """All of them, running; inside, this process's own environment leads to the storage past the proxy."""
    (folder / "s3").mkdir(parents=True)
    with ExitStack() as stack:
        s3 = stack.enter_context(S3Server(folder / "s3"))
        proxy = stack.enter_context(FaultyProxy(s3.endpoint))
        cluster = _cluster(stack, folder, _behind(proxy, s3), cpus)
        stack.enter_context(_variables(s3.environment))
        yield Servers(s3, proxy, stack.enter_context(MlflowServer(folder / "mlflow")), cluster)


def _behind(proxy: FaultyProxy, s3: S3Server) -> dict[str, str]:
    return {**s3.environment, "AWS_ENDPOINT_URL": proxy.endpoint, "OMP_NUM_THREADS": "1"}


def _cluster(stack: ExitStack, folder: Path, environment: dict[str, str], cpus: int) -> LocalCluster:
    """A running cluster; one that a busy machine has not started in Ray's own time is tried again."""
    for attempt in range(_CLUSTERS):
        own = folder / f"cluster-{attempt}"
        own.mkdir()
        try:
            return stack.enter_context(local_cluster(own, environment, cpus))
        except RuntimeError:
            if attempt == _CLUSTERS - 1:
                raise
    raise AssertionError


@contextmanager
def _variables(values: dict[str, str]) -> Iterator[None]:
    """Inside, this process's environment has these too."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key)
            if value is not None:
                os.environ[key] = value


@dataclass
class Soaked:
    """What became of the run."""

    events: list[Event]
    run_id: str = ""
    struck: Counter[str] = field(default_factory=Counter)
    """Faults by kind."""
    requests: Counter[str] = field(default_factory=Counter)
    """Requests that storage failed, by the sort of fault."""
    ends: Counter[int] = field(default_factory=Counter)
    """Attempts by exit status."""


class Outage:
    """The tracking server killed, and started again after a while, by a thread of its own."""

    def __init__(self, server: MlflowServer, lasts_s: float) -> None:
        self._server, self._lasts_s = server, lasts_s
        self._over, self._error = threading.Event(), None
        self._thread = threading.Thread(target=self._run, name="outage")
        self._thread.start()

    def is_over(self) -> bool:
        """Whether the server answers again. Raises what kept it from that."""
        if self._thread.is_alive():
            return False
        if self._error is not None:
            raise self._error
        return True

    def end(self) -> None:
        """Start the server at once, and wait until it answers."""
        self._over.set()
        self._thread.join()
        self.is_over()

    def _run(self) -> None:
        try:
            self._server.kill()
            self._over.wait(self._lasts_s)
            self._server.start()
        except Exception as error:  # noqa: BLE001  (raised in the thread that asks)
            self._error = error


class Storm:
    """Storage that fails for a while, and how many requests it has failed."""

    def __init__(self, proxy: FaultyProxy, sort: Sort, lasts_s: float, seed: int) -> None:
        self.name, self._until_s = sort.name, time.monotonic() + lasts_s
        self._rule: Rule = proxy.inject(sort.fault, share=sort.share, seed=seed)

    @property
    def hits(self) -> int:
        """Requests failed so far."""
        return self._rule.hits

    def is_over(self) -> bool:
        """Whether its time is up; from then on it fails no request."""
        if time.monotonic() < self._until_s:
            return False
        self.end()
        return True

    def end(self) -> None:
        """Let it fail no further request."""
        self._rule.times = 0


class Soak:
    """Runs the same command until it is done, while the planned faults strike.

    `start` begins an attempt and appends to `events`. Raises RuntimeError if an attempt ends as no fault
    explains, or says nothing for `patience_s`.
    """

    def __init__(
        self,
        start: Callable[[], Job],
        events: list[Event],
        around: Servers,
        faults: list[Fault],
        patience_s: float,
        say: Callable[[str], None],
    ) -> None:
        self._start, self._around, self._left = start, around, list(faults)
        self._patience_s, self._say = patience_s, say
        self._soaked = Soaked(events)
        self._trained_s = 0.0
        self._outage: Outage | None = None
        self._storm: Storm | None = None
        self._terminated = self._stormy = False

    def run(self) -> Soaked:
        """To the end; then all servers are up and faultless."""
        soaked = self._soaked
        try:
            while True:
                self._terminated, self._stormy = False, self._storm is not None
                with self._start() as job:
                    status = self._attend(job)
                soaked.ends[status] += 1
                if status == EXIT_STATUS["done"]:
                    soaked.run_id = job.summary["run_id"]
                    return soaked
                self._explain(job, status)
        finally:
            if self._storm is not None:
                self._calm()
            if self._outage is not None:
                self._outage.end()

    def _attend(self, job: Job) -> int:
        """Let faults strike an attempt until it ends; its exit status."""
        before_s = time.monotonic()
        while (status := job.ended()) is None:
            now_s, training = time.monotonic(), job.is_training()
            if training:
                self._trained_s += now_s - before_s
            before_s = now_s
            if self._storm is not None and self._storm.is_over():
                self._calm()
            if self._outage is not None and self._outage.is_over():
                self._say("the tracking server is back")
                self._outage = None
            due = [fault for fault in self._left if fault.at_s <= self._trained_s] if training else []
            for fault in due:
                if self._strike(fault, job):
                    self._left.remove(fault)
                    self._soaked.struck[fault.kind] += 1
                    self._say(f"{fault.kind}{f': {fault.weather.name}' if fault.weather else ''}")
                    break
            if now_s - self._soaked.events[-1].at_s > self._patience_s:
                raise RuntimeError(
                    f"the run said nothing for {self._patience_s:g} s: {job.said()[-_LOG_END:]}"
                )
            time.sleep(_POLL_S)
        return status

    def _strike(self, fault: Fault, job: Job) -> bool:
        """Let a fault happen; False if it has to wait for the end of another."""
        match fault.kind:
            case "worker killed":
                return job.kill_worker(fault.draw)
            case "driver terminated":
                job.terminate()
                self._terminated = True
                return True
            case "tracking outage":
                if self._outage is not None:
                    return False
                self._outage = Outage(self._around.mlflow, fault.lasts_s)
                return True
            case "storage fault":
                if self._storm is not None:
                    return False
                assert fault.weather is not None
                self._storm = Storm(self._around.proxy, fault.weather, fault.lasts_s, fault.draw)
                self._stormy = True
                return True

    def _calm(self) -> None:
        assert self._storm is not None
        self._storm.end()
        self._soaked.requests[self._storm.name] += self._storm.hits
        self._say(f"storage is well again, {self._storm.hits} requests have failed")
        self._storm = None

    def _explain(self, job: Job, status: int) -> None:
        """Whether the attempt ended as it says it does after what has struck it; it is made again then."""
        if status == EXIT_STATUS["interrupted"] and self._terminated:
            self._soaked.events.append(Event(time.monotonic(), "saved", job.summary["steps"]))
        elif status != EXIT_STATUS["failed"] or not self._stormy:
            name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            raise RuntimeError(f"the run ended with {name}: {job.said()[-_LOG_END:]}")
        self._say(f"ended with exit status {status}, submitted again")
