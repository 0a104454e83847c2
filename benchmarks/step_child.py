"""python -m benchmarks.step_child SPEC

The process of one arm (see `step_turns`); SPEC is an `ArmSpec` as JSON. With several ranks it starts the
others. Started by `benchmarks.step` alone, through the pipes that ARM_PIPES names.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from benchmarks.step_turns import ArmSpec, Stop, Turns
from hssl_dist.errors import HsslError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIMEOUT = timedelta(minutes=15)
WARM_UP = {"cpu": 2, "cuda": 5}
"""Steps before the first turn: what is compiled or chosen by trial is, by then."""


def main() -> None:
    """Run the arm until its pipe is closed."""
    known = json.loads(sys.argv[1])
    spec = ArmSpec(**known | {"cores": tuple(known["cores"])})
    if spec.cores:
        os.sched_setaffinity(0, spec.cores)
    torch.set_num_threads(spec.threads)
    rank = int(os.environ.get("ARM_RANK", "0"))
    with _ranks(spec, rank):
        # Ranks that tell nobody: rank 0's collectives are what they wait for.
        turns = _turns(spec) if rank == 0 else None
        try:
            run = _imported(spec.kind)
            if turns is not None:
                turns.wait_for_start()
            run(spec, turns)
        except Stop:
            pass
        except (ImportError, HsslError, torch.OutOfMemoryError) as error:
            if turns is None:
                raise
            turns.refuse(f"{type(error).__name__}: {str(error).splitlines()[0]}")
        finally:
            if turns is not None:
                turns.close()


def _turns(spec: ArmSpec) -> Turns:
    if spec.device == "cpu":
        return Turns(spec.turn_s, WARM_UP[spec.device])
    # All arms live at once, and a GPU's memory is for one of them at a time.
    return Turns(spec.turn_s, WARM_UP[spec.device], lead=2, release=torch.cuda.empty_cache)


@contextmanager
def _ranks(spec: ArmSpec, rank: int) -> Iterator[None]:
    """This rank's process group, and on rank 0 the processes of the others; nothing for one rank, no group if
    they are not together.
    """
    if spec.ranks == 1:
        yield
        return
    others: list[subprocess.Popen[bytes]] = []
    meeting = os.environ.get("ARM_MEETING") or f"{tempfile.mkdtemp(dir=spec.folder)}/meeting"
    if rank == 0:
        for number in range(1, spec.ranks):
            environment = os.environ | {"ARM_RANK": str(number), "ARM_MEETING": meeting}
            others.append(subprocess.Popen(sys.orig_argv, env=environment))  # same group: stopped together
    if spec.together:
        _meet(spec, rank, meeting)
    yield
    # The others wait in a collective for what rank 0 no longer does; the parent ends the whole group anyway.
    for process in others:
        process.kill()
        process.wait()


def _meet(spec: ArmSpec, rank: int, meeting: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if spec.device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if spec.device == "cuda" else "gloo",
        init_method=f"file://{Path(meeting).resolve()}",
        rank=rank,
        world_size=spec.ranks,
        timeout=TIMEOUT,
    )


KINDS = {
    "matmul": "benchmarks.step_ceiling:run",
    "ours": "benchmarks.step_ours:run",
    "lightly": "benchmarks.step_peers:lightly",
    "plain": "benchmarks.step_peers:lightly_on_plain_modules",
    "segresnet": "benchmarks.step_peers:segresnet",
    "swinunetr": "benchmarks.step_peers:swinunetr",
}
"""What an arm does; each runs until `Turns` raises Stop. An arm imports its own alone, so that its memory is
that of what it needs.
"""


def _imported(kind: str) -> Callable[[ArmSpec, Turns | None], None]:
    module, _, name = KINDS[kind].partition(":")
    run: Callable[[ArmSpec, Turns | None], None] = getattr(importlib.import_module(module), name)
    return run


if __name__ == "__main__":
    main()
