"""Run a function on several gloo ranks, each a fresh process of this machine."""

import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable, Collection
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *args: Any,
    timeout_s: float = 120.0,
    deadline_s: float | None = None,
    lost: Collection[int] = (),
) -> list[Any]:
    """What `function(*args)` returns on each rank of a new process group, in rank order.

    `function` is one of a module's top level; arguments and results are pickled. AssertionError with the
    rank's traceback if one raises or dies, TimeoutError after `timeout_s`; no process outlives the call. A
    collective waits `deadline_s`, by default as long. The ranks `lost` must end without a result: theirs is
    None.
    """
    context = get_context("spawn")
    deadline = time.monotonic() + timeout_s
    results: dict[int, Any] = {}
    processes, readers = [], {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(world_size):
                reader, writer = context.Pipe(duplex=False)
                process = context.Process(
                    target=_rank_main,
                    args=(
                        function,
                        args,
                        rank,
                        world_size,
                        Path(folder) / "init",
                        deadline_s or timeout_s,
                        writer,
                    ),
                    daemon=True,
                )
                process.start()
                writer.close()
                processes.append(process)
                readers[reader] = rank
            while readers:
                ready = wait(list(readers), timeout=max(deadline - time.monotonic(), 0))
                if not ready:
                    raise TimeoutError(f"ranks {sorted(readers.values())} took more than {timeout_s:g} s")
                for reader in ready:
                    rank = readers.pop(reader)
                    results[rank] = _receive(reader, rank, lost=rank in lost)
        finally:
            for process in processes:
                process.join(timeout=10 if len(results) == world_size else 0)
                process.kill()
                process.join()
            for reader in readers:
                reader.close()
    return [results[rank] for rank in range(world_size)]


def _receive(reader: Connection, rank: int, *, lost: bool) -> Any:
    with reader:
        try:
            kind, value = pickle.loads(reader.recv_bytes())
        except EOFError:
            if lost:
                return None
            raise AssertionError(f"rank {rank} ended without a result") from None
    if lost:
        raise AssertionError(f"rank {rank} was to be lost, and gave {value}")
    if kind == "raised":
        raise AssertionError(f"rank {rank} raised:\n{value}")
    return value


def _rank_main(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    rank: int,
    world_size: int,
    init_file: Path,
    deadline_s: float,
    writer: Connection,
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{init_file}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=deadline_s),
        )
        # All must have met before a rank that fails at once goes away, or another's connection fails first.
        dist.barrier()
        answer = ("done", function(*args))
    except Exception:  # noqa: BLE001  (its text goes to the parent)
        answer = ("raised", traceback.format_exc())
    # Pickled here and not by the pipe: torch would send tensors as handles that end with this process.
    writer.send_bytes(pickle.dumps(answer))
    writer.close()
    dist.destroy_process_group()
