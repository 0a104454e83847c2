"""The job's own tasks on a local Ray: how long a fixed amount of work takes with some CPUs."""

from __future__ import annotations

import tempfile
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
    cases: tuple[Case, ...], recipe: Recipe, voxels: int, copies: int, cpus: int
) -> Callable[[], int]:
    """Storing copies of cases of `voxels` each on a warm Ray of `cpus` CPUs; returns how many."""
    stack = ExitStack()
    root = stack.enter_context(tempfile.TemporaryDirectory())
    workers = Workers(RayConfig(num_cpus=cpus), Console(), stack)

    def store(copies: Iterable[int]) -> int:
        work = [
            (
                Assignment(replace(case, id=f"{case.id}-{copy}"), "t", "g", (), (), "0" * 64),
                memory_bytes(voxels, voxels),
            )
            for copy in copies
            for case in cases
        ]
        arguments = (root, recipe, StorageConfig(), 1 << 30)
        return len(list(workers.run(store_cases, batched(work), *arguments)))

    store(range(-3 * cpus * max(1, 8 // len(cases)), 0))  # every worker has started and imported all it needs

    def work() -> int:
        with stack:
            return store(range(copies))

    return work
