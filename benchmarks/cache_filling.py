"""Ways to decode a stored volume into a file of the node's cache, beside each other.

    PYTHONPATH=. python benchmarks/cache_filling.py [--rounds 5]

Eight generated volumes of 256^3 are decoded from the page cache into new files of TMPDIR, which has to be a
local disk, and their checksums are taken, as the cache does. Prints milliseconds of wall and CPU time per
volume, medians over interleaved rounds.
"""

from __future__ import annotations

import argparse
import mmap
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loader_data import generate
from hssl_dist.store import read_manifests
from hssl_dist.store.backend import StoredArray
from hssl_dist.store.cache_files import VolumeForm, map_for_writing
from hssl_dist.store.tensorstore_backend import TensorstoreBackend

SHAPE, VOLUMES = (256, 256, 256), 8
_WHOLE = (slice(0, 1), *(slice(0, side) for side in SHAPE))
_KEY = "0" * 64
_MEMORY = np.zeros(SHAPE, np.int16)

Array = np.ndarray[Any, np.dtype[Any]]
Decode = Callable[[Array], None]


def through_the_mapping_alone(descriptor: int, form: VolumeForm, decode: Decode) -> Array:
    values: Array = np.frombuffer(mmap.mmap(descriptor, form.values_bytes), form.dtype).reshape(form.shape)
    decode(values)
    return values


def ours(descriptor: int, form: VolumeForm, decode: Decode) -> Array:
    values = map_for_writing(descriptor, form)
    decode(values)
    return values


def into_memory_then_written(descriptor: int, form: VolumeForm, decode: Decode) -> Array:  # noqa: ARG001
    decode(_MEMORY)
    os.pwrite(descriptor, _MEMORY.data.cast("B"), 0)
    return _MEMORY


WAYS: dict[str, Callable[[int, VolumeForm, Decode], Array]] = {
    "through the mapping alone": through_the_mapping_alone,
    "zeros first, then through the mapping (ours)": ours,
    "into memory that is used again, then written": into_memory_then_written,
}


def filled(way: Callable[[int, VolumeForm, Decode], Array], path: Path, stored: StoredArray) -> None:
    """One file of the cache."""
    form = VolumeForm(stored.dtype, SHAPE, stored.scaling)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        os.posix_fallocate(descriptor, 0, form.file_bytes(_KEY))
        values = way(descriptor, form, lambda out: stored.read_into(_WHOLE, out[None]))
        os.pwrite(descriptor, form.footer(_KEY, values), form.values_bytes)
    finally:
        os.close(descriptor)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    wall_ms: dict[str, list[float]] = {name: [] for name in WAYS}
    cpu_ms: dict[str, list[float]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        prepared = generate(folder, SHAPE, VOLUMES)
        backend = TensorstoreBackend(prepared.store, 0)
        manifests = read_manifests(prepared.store).values()
        arrays = [backend.open(record, "0") for manifest in manifests for record in manifest.cases]
        for _ in range(1 + rounds):
            for name, way in WAYS.items():
                start_s, start_cpu_s = time.perf_counter(), time.process_time()
                for number, stored in enumerate(arrays):
                    filled(way, Path(folder, f"{number}.volume"), stored)
                wall_ms[name].append((time.perf_counter() - start_s) / VOLUMES * 1e3)
                cpu_ms[name].append((time.process_time() - start_cpu_s) / VOLUMES * 1e3)
                for path in Path(folder).glob("*.volume"):
                    path.unlink()
    for name in WAYS:  # the first round warms up
        wall, cpu = (statistics.median(times[name][1:]) for times in (wall_ms, cpu_ms))
        sys.stdout.write(f"{name:46} {wall:6.1f} ms, {cpu:6.1f} ms of CPU time\n")


if __name__ == "__main__":
    main()
