"""Ways to cut a float32 patch from a volume of int16, beside each other.

    python benchmarks/cropping.py [--size 96] [--rounds 15]

Patches lie at random in four volumes of 256^3, too large for a core's cache. All ways give the same bits.
Prints microseconds of CPU time per patch, medians over interleaved rounds, one thread.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from hssl_dist.records import Scaling
from hssl_dist.store.cropping import write_values
from tests.reading import dequantise

Array = np.ndarray[Any, np.dtype[Any]]

SCALING = Scaling(2.0**-10, 0.0)
SCALE = np.float32(SCALING.scale_factor)
PATCHES = 40


def whole_then_copied(stored: Array, out: Array) -> None:
    out[...] = dequantise(stored, SCALING)


def multiply(stored: Array, out: Array) -> None:
    np.multiply(stored, SCALE, out=out, dtype=np.float32, casting="unsafe")


def torch_copy_then_multiply(stored: Array, out: Array) -> None:
    torch.from_numpy(out).copy_(torch.from_numpy(stored)).mul_(SCALING.scale_factor)


def torch_multiply(stored: Array, out: Array) -> None:
    torch.mul(torch.from_numpy(stored), SCALING.scale_factor, out=torch.from_numpy(out))


def in_slabs(stored: Array, out: Array) -> None:
    depth = max(1, (128 << 10) // out[:1].nbytes)
    for low in range(0, len(out), depth):
        write_values(stored[low : low + depth], SCALING, out[low : low + depth])


def ours(stored: Array, out: Array) -> None:
    write_values(stored, SCALING, out)


def stored_numbers_only(stored: Array, out: Array) -> None:
    """The lower bound: no conversion at all."""
    np.copyto(out.view(np.int16)[..., : out.shape[-1]], stored)


WAYS: dict[str, Callable[[Array, Array], None]] = {
    "dequantise, then copy": whole_then_copied,
    "np.multiply(out=)": multiply,
    "torch copy_, then mul_": torch_copy_then_multiply,
    "torch.mul(out=)": torch_multiply,
    "np.copyto, then np.multiply (ours)": ours,
    "the same, 128 KiB at a time": in_slabs,
    "int16 copied, not converted": stored_numbers_only,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    volumes = [rng.integers(-3000, 3000, (256, 256, 256)).astype(np.int16) for _ in range(4)]
    out = np.empty((8, *[arguments.size] * 3), np.float32)
    boxes = [
        volumes[index % len(volumes)][tuple(slice(start, start + arguments.size) for start in starts)]
        for index, starts in enumerate(rng.integers(0, 256 - arguments.size, (PATCHES, 3)).tolist())
    ]
    expected = dequantise(boxes[0], SCALING)
    for name, way in list(WAYS.items())[:-1]:
        way(boxes[0], out[0])
        if not np.array_equal(out[0].view(np.int32), expected.view(np.int32)):
            raise SystemExit(f"{name} gives other bits")
    times_us: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(arguments.rounds):
        for name, way in WAYS.items():
            start_s = time.process_time()
            for index, box in enumerate(boxes):
                way(box, out[index % len(out)])
            times_us[name].append((time.process_time() - start_s) / PATCHES * 1e6)
    for name, times in times_us.items():
        sys.stdout.write(f"{name:45} {statistics.median(times):6.0f} us\n")


if __name__ == "__main__":
    main()
