"""The job's own tasks on a local Ray: how long a fixed amount of work takes with some CPUs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace

from hssl_dist.config.parts import RayConfig
from hssl_dist.config.preprocess import StorageConfig
from hssl_dist.console import Console
from hssl_dist.imaging import Recipe
from hssl_dist.jobs.batches import Workers, batched
from hssl_dist.jobs.preprocess_cases import Assignment, memory_bytes, store_cases
from hssl_dist.records import Case


def scaling(
    cases: tuple[Case, ...], recipe: Recipe, voxels: int, copies: int, cpus: int, folder: str
) -> Callable[[], float]:
    """Storing copies of cases of `voxels` each on a warm Ray of `cpus` CPUs; returns its wall seconds.

    The store is a new folder in `folder`, which the caller keeps until all is measured: ext4 walks around the
    inodes of files that have just been deleted, and a new file then takes it longer.
    """
    stack = ExitStack()
    root = tempfile.mkdtemp(dir=folder)
    workers = Workers(RayConfig(num_cpus=cpus), Console(), stack)

    def store(copies: Iterable[int]) -> None:
        work = [
            (
                Assignment(replace(case, id=f"{case.id}-{copy}"), "t", "g", (), (), "0" * 64),
                memory_bytes(voxels, voxels),
            )
            for copy in copies
            for case in cases
        ]
        arguments = (root, recipe, StorageConfig(), 1 << 30)
        for _ in workers.run(store_cases, batched(work), *arguments):
            pass

    store(range(-3 * cpus * max(1, 8 // len(cases)), 0))  # every worker has started and imported all it needs

    def work() -> float:
        with stack:  # that Ray ends takes a second and more, whatever there was to do
            started_s = time.perf_counter()
            store(range(copies))
            return time.perf_counter() - started_s

    return work
