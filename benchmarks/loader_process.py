"""One arm of the loader's benchmark in a process of its own: first epoch, steady state, delivered bytes.

`run_arm` starts the process, watches the memory of it and of its workers while it is not being timed, and
returns what it says. In the process, an arm's delivery is opened, a first epoch is timed from there, then a
steady state, and then every patch is hashed. Processes are forked from one that has imported the slow
libraries and has done nothing else, so that a measurement does not begin with ten seconds of imports.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import tempfile
import time
import urllib.request
from dataclasses import asdict, dataclass
from multiprocessing import get_context, set_start_method
from typing import TYPE_CHECKING, Any

from benchmarks.loader_data import Draws, Prepared, digest, key
from benchmarks.loader_ours import float32
from benchmarks.measuring import Memory, tree_memory, tree_usage

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

    from benchmarks.loader_data import Patch

    Delivery = Generator[tuple[tuple[Patch, ...], Any]]
    Figures = Callable[[], dict[str, int]]
    Open = Callable[[Prepared, Draws], tuple[Delivery, Figures]]

ARMS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "ours": ("benchmarks.loader_ours", "with_cache", ("tensorstore",)),
    "ours, made float32": ("benchmarks.loader_ours", "with_cache_as_float32", ("tensorstore",)),
    "ours, no cache": ("benchmarks.loader_ours", "without_cache", ("tensorstore",)),
    "zarr-python": ("benchmarks.loader_peers", "zarr_python", ("zarr",)),
    "MONAI CacheDataset": ("benchmarks.loader_peers", "cache_dataset", ("monai.data", "monai.transforms")),
    "MONAI CacheDataset, 4 crops a visit": (
        "benchmarks.loader_peers", "cache_dataset_samples", ("monai.data", "monai.transforms"),
    ),
    "MONAI CacheDataset, 2 workers": (
        "benchmarks.loader_peers", "cache_dataset_workers", ("monai.data", "monai.transforms"),
    ),
    "MONAI PersistentDataset": (
        "benchmarks.loader_peers", "persistent_dataset", ("monai.data", "monai.transforms"),
    ),
    "MONAI PersistentDataset, 4 crops a visit": (
        "benchmarks.loader_peers", "persistent_dataset_samples", ("monai.data", "monai.transforms"),
    ),
    "nnU-Net blosc2": ("benchmarks.loader_peers", "nnunet", ("batchgenerators.dataloading", "blosc2")),
}  # fmt: skip
"""Name to module, function and the libraries whose import is not measured."""

_PRELOADED = ["torch", "monai.data", "monai.transforms", "hssl_dist.sampling", "benchmarks.loader_peers"]
_SAMPLE_S = 0.1
_LOOKED_AT_S = 1.5
_CHECKED_S = 90.0
_GRACE_S = 10.0


@dataclass(frozen=True)
class Window:
    """What one stretch of delivery took, of the process and its workers."""

    patches: int
    wall_s: float
    cpu_s: float
    read_bytes: int
    """From the disk, not from the page cache."""
    served: dict[str, int] | None
    """`gets` and `bytes_sent` of the S3 server, of a store that lies there."""
    figures: dict[str, int]
    """The reader's own counters, of the product's arms."""


# ------------------------------------------------------------------------------------------ from the outside


def run_arm(
    arm: str,
    prepared: Prepared,
    draws: Draws,
    warm_s: float,
    deadline_s: float,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Measure an arm in a fresh process.

    Returns `startup_s` (from opening to the first batch), `first` and `steady` (a `Window` each), `digests`
    by patch, and `libraries` and `peak`, the memory before anything was opened and the most there was (a
    `Memory` each). Raises RuntimeError with the process's own words if it fails or takes too long.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with tempfile.NamedTemporaryFile("r", errors="replace") as words:
        ours, its = context.Pipe()
        task = (arm, prepared, draws, warm_s, dict(environment or {}), words.name, its)
        process = context.Process(target=_work, args=task)
        process.start()
        its.close()
        try:
            outcome = _watch(process, ours, time.monotonic() + deadline_s)
        finally:
            _end(process)
            ours.close()
        if outcome is None:
            said = words.read().strip()[-2000:]
            raise RuntimeError(f"{arm} failed, or took more than {deadline_s:.0f} s: {said or 'no word why'}")
    return outcome


def _watch(process: BaseProcess, events: Connection, deadline: float) -> dict[str, Any] | None:
    """The process's result, with its peak memory; None if there was none in time."""
    timed, peak = True, Memory(0.0, 0.0)
    while time.monotonic() < deadline:
        if not events.poll(_SAMPLE_S):
            if not timed and process.pid is not None:
                peak = max(peak, tree_memory(process.pid), key=lambda memory: memory.total_mib)
            continue
        try:
            event = events.recv()
        except EOFError:
            return None
        if isinstance(event, dict):
            return {**event, "peak": asdict(peak)}
        timed = event == "timed"
    return None


def _end(process: BaseProcess) -> None:
    """End the process and its workers, which are one group."""
    process.join(_GRACE_S)
    if process.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


# ------------------------------------------------------------------------------------------- from the inside


def _work(
    arm: str,
    prepared: Prepared,
    draws: Draws,
    warm_s: float,
    environment: dict[str, str],
    words: str,
    events: Connection,
) -> None:
    """Measure, in the fresh process; what is printed goes to the file `words`."""
    os.setsid()
    with open(words, "w") as file:  # noqa: PTH123  (a descriptor is wanted)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    set_start_method("fork", force=True)  # for an arm's own workers, as if nothing had been chosen
    module, function, libraries = ARMS[arm]
    for library in libraries:
        importlib.import_module(library)
    open_arm = getattr(importlib.import_module(module), function)
    events.send(_measure(open_arm, prepared, draws, warm_s, events))


def _measure(
    open_arm: Open, prepared: Prepared, draws: Draws, warm_s: float, events: Connection
) -> dict[str, Any]:
    libraries = tree_memory(os.getpid())
    events.send("timed")
    stretch = _Stretch(prepared, dict)
    delivery, figures = open_arm(prepared, draws)
    stretch.figures = figures
    patches, _ = next(delivery)
    startup_s = stretch.elapsed_s()
    count = len(patches)
    while count < len(draws.patches):
        count += len(next(delivery)[0])
    first = stretch.window(count)

    events.send("watched")  # so that memory is looked at while batches are on their way
    _deliver_for(delivery, _LOOKED_AT_S)
    events.send("timed")
    stretch = _Stretch(prepared, figures)
    count = _deliver_for(delivery, warm_s)
    steady = stretch.window(count)

    digests: dict[str, str] = {}
    wanted, stop_s = {key(patch) for patch in draws.patches}, time.perf_counter() + _CHECKED_S
    while wanted and time.perf_counter() < stop_s:  # workers deliver in any order, and again and again
        patches, values = next(delivery)
        for patch, row in zip(patches, float32(values), strict=True):
            if key(patch) in wanted:
                wanted.remove(key(patch))
                digests[key(patch)] = digest(row)
    delivery.close()
    return {
        "startup_s": startup_s,
        "first": asdict(first),
        "steady": asdict(steady),
        "digests": digests,
        "libraries": asdict(libraries),
    }


def _deliver_for(delivery: Delivery, seconds: float) -> int:
    count, stop_s = 0, time.perf_counter() + seconds
    while time.perf_counter() < stop_s:
        count += len(next(delivery)[0])
    return count


class _Stretch:
    """A stretch of time that begins now."""

    def __init__(self, prepared: Prepared, figures: Figures) -> None:
        self.figures = figures
        self._store = prepared.store
        self._figures_before, self._served_before = figures(), _served(prepared.store)
        self._before = tree_usage(os.getpid())
        self._start_s = time.perf_counter()

    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self._start_s

    def window(self, patches: int) -> Window:
        """What it took, now that so many patches were delivered."""
        wall_s, after = self.elapsed_s(), tree_usage(os.getpid())
        served = _served(self._store)
        return Window(
            patches,
            wall_s,
            after.cpu_s - self._before.cpu_s,
            after.read_bytes - self._before.read_bytes,
            served and _difference(served, self._served_before or {}),
            _difference(self.figures(), self._figures_before),
        )


def _difference(after: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {name: value - before.get(name, 0) for name, value in after.items()}


def _served(store: str) -> dict[str, int] | None:
    """What the S3 server of the tests says it has done for the store's bucket."""
    if not store.startswith("s3://"):
        return None
    bucket = store.removeprefix("s3://").partition("/")[0]
    with urllib.request.urlopen(f"{os.environ['AWS_ENDPOINT_URL']}/.counts", timeout=10) as answer:
        counts = json.load(answer).get(bucket, {"requests": {}, "bytes_sent": 0})
    return {"gets": counts["requests"].get("GET", 0), "bytes_sent": counts["bytes_sent"]}
