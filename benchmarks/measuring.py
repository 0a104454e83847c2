"""Time and peak memory of a piece of work, each measurement in a fresh process; and on what machine.

A fresh process shares no allocator, no cached pages and no warm threads with the one before it. The
memory counted is the growth of the process's peak resident set over what it held when the work began, so
the interpreter and the libraries do not count. Linux only.
"""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import resource
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import torch

MIB = 1 << 20
RESERVE_MIB = 2048.0
"""Memory left to the rest of the machine by every measurement."""

Work = Callable[[], Any]


@dataclass(frozen=True)
class Measurement:
    """What one call of the work took."""

    growth_mib: float
    """Growth of the peak resident set during the call."""
    cpu_s: float
    """Processor time of all its threads, user and system."""
    wall_s: float
    result: Any


@dataclass(frozen=True)
class CannotRun:
    """Why there is no measurement."""

    reason: str


def measure(
    build: Callable[..., Work],
    *arguments: Any,
    threads: int = 1,
    memory_limit_mib: float | None = None,
) -> Measurement | CannotRun:
    """Call `build(*arguments)` in a fresh process and measure one call of what it returns.

    `build` is a function of a module's top level; what it does, such as a warm-up, is not measured.
    An allocation beyond `memory_limit_mib` fails and gives CannotRun, as does the process's end: should the
    machine run out of memory, the kernel takes this process first. Whatever else the work raises is raised.
    """
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(_measure_here, build, arguments, threads, memory_limit_mib).result()
        except BrokenProcessPool:
            return CannotRun("its process was killed")


def _measure_here(
    build: Callable[..., Work], arguments: tuple[Any, ...], threads: int, memory_limit_mib: float | None
) -> Measurement | CannotRun:
    Path("/proc/self/oom_score_adj").write_text("1000")
    torch.set_num_threads(threads)
    work = build(*arguments)
    gc.collect()
    if memory_limit_mib is not None:
        limit = int((own_memory_mib("VmData") + memory_limit_mib) * MIB)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before_mib = own_memory_mib("VmRSS")
    start_cpu_s, start_s = time.process_time(), time.perf_counter()
    try:
        result = work()
    except (MemoryError, RuntimeError) as error:
        # torch's processor allocator raises a plain RuntimeError.
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise
        return CannotRun(f"needs more than {memory_limit_mib or 0:.0f} MiB")
    wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    return Measurement(own_memory_mib("VmHWM") - before_mib, cpu_s, wall_s, result)


def own_memory_mib(field: str) -> float:
    """A size of this process as /proc/self/status has it: `VmRSS`, `VmHWM` (the most of it), `VmData`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) / 1024
    raise KeyError(field)


# ------------------------------------------------------------------------------- a process and its workers


@dataclass(frozen=True)
class Memory:
    """Proportional set size of some processes: shared pages are divided among those that share them."""

    private_mib: float
    """What only swapping could take from them: anonymous and shared memory."""
    file_mib: float
    """Mapped files: pages the system can drop, and libraries."""

    @property
    def total_mib(self) -> float:
        """All of it."""
        return self.private_mib + self.file_mib


@dataclass(frozen=True)
class Usage:
    """What some processes have used so far."""

    cpu_s: float
    read_bytes: int
    """From storage, not from the page cache."""


def tree_memory(pid: int) -> Memory:
    """Of a process and its descendants, now; those that have ended meanwhile hold nothing."""
    private_kib = file_kib = 0
    for each in _tree(pid):
        try:
            text = Path(f"/proc/{each.pid}/smaps_rollup").read_text()
        except OSError:
            continue
        sizes = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines()[1:]}
        private_kib += sizes["Pss_Anon"] + sizes["Pss_Shmem"]
        file_kib += sizes["Pss_File"]
    return Memory(private_kib / 1024, file_kib / 1024)


def tree_usage(pid: int) -> Usage:
    """Of a process and its descendants that are alive."""
    cpu_s, read_bytes = 0.0, 0
    for each in _tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = each.cpu_times()
            cpu_s += times.user + times.system
            read_bytes += each.io_counters().read_bytes
    return Usage(cpu_s, read_bytes)


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def end_cleanly_when_asked() -> None:
    """Let SIGTERM end this process as Ctrl-C does: what it started is ended, its scratch removed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def drop_from_page_cache(folder: Path) -> int:
    """Have the system forget the contents of a folder's files; returns their bytes."""
    total = 0
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                total += path.stat().st_size
    return total


def wait_for_memory(needed_mib: float, timeout_s: float) -> bool:
    """Whether the machine has so much memory free beside RESERVE_MIB, now or within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while psutil.virtual_memory().available / MIB < needed_mib + RESERVE_MIB:
        if time.monotonic() > deadline:
            return False
        time.sleep(min(5.0, timeout_s))
    return True


def load_average() -> list[float]:
    """Of the last 1, 5 and 15 minutes, with this process's own share."""
    return [round(load, 2) for load in os.getloadavg()]


def machine() -> dict[str, Any]:
    """The processor, its cores, the memory and the versions that numbers depend on."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 1024 / MIB, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def gpu_machine() -> dict[str, Any]:
    """The GPU and the versions that numbers depend on; of the machine around it nothing is told."""
    properties = torch.cuda.get_device_properties(0)
    known = machine()
    return {
        "gpu": properties.name,
        "gpu_memory_gib": round(properties.total_memory / (1 << 30), 1),
        "cuda": torch.version.cuda,
        "python": known["python"],
        "torch": known["torch"],
    }
