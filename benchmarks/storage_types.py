"""python benchmarks/storage_types.py --config configs/preprocess/real.yaml

How prepared volumes are best stored: number type and codec by size, error, writing and reading speed.

Takes some cases of each dataset of a preprocessing config, prepares them as the job does, and stores them in
each way with the store's own chunks. Reading is of random boxes by tensorstore from warm local disk without a
cache. Times are of the CPU (all threads), ways take turns over several rounds and the best round counts, so a
busy machine disturbs little.
Prints a table (or, with --json, one line of JSON) and writes benchmarks/results/storage_types.json.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from hssl_dist import imaging
from hssl_dist.config.loading import load_config
from hssl_dist.config.preprocess import PreprocessConfig
from hssl_dist.datasets import discover
from hssl_dist.records import Scaling
from hssl_dist.store.layout import chunk_grid
from hssl_dist.store.quantising import quantise

RESULTS = Path(__file__).parent / "results" / "storage_types.json"
BOX = (24, 72, 72)
BOXES_PER_CASE = 6

Image = np.ndarray[Any, np.dtype[Any]]


def full_range(image: Image) -> tuple[Image, Scaling]:
    """int16 over exactly the volume's own range: the finest uniform steps there can be."""
    low, high = float(image.min()), float(image.max())
    scaling = Scaling((high - low) / 65534 or 1.0, (high + low) / 2)
    return np.rint((image - scaling.add_offset) / scaling.scale_factor).astype(np.int16), scaling


TYPES: dict[str, Callable[[Image], tuple[Image, Scaling]]] = {
    "int16 full range": full_range,
    "int16 2^-10": lambda image: quantise(image, "int16"),
    "float16": lambda image: quantise(image, "float16"),
}


def blosc(cname: Any, shuffle: Any) -> BloscCodec:
    """Blosc on two-byte numbers."""
    return BloscCodec(typesize=2, cname=cname, clevel=1 if cname == "zstd" else 5, shuffle=shuffle)


CODECS: dict[str, list[Any]] = {
    "none": [],
    "zstd1": [ZstdCodec(level=1)],
    "zstd3": [ZstdCodec(level=3)],
    "blosc lz4 shuffle": [blosc("lz4", "shuffle")],
    "blosc lz4 bitshuffle": [blosc("lz4", "bitshuffle")],
    "blosc zstd1 shuffle": [blosc("zstd", "shuffle")],
    "blosc zstd1 bitshuffle": [blosc("zstd", "bitshuffle")],
}


@dataclass
class Way:
    """One type with one codec, and what was measured of it."""

    type: str
    codec: str
    bytes_by_dataset: dict[str, int] = field(default_factory=dict)
    max_error: float = 0.0
    squared_error: float = 0.0
    write_s: list[float] = field(default_factory=list)
    read_s: list[float] = field(default_factory=list)


def prepared(config: PreprocessConfig, cases_per_dataset: int) -> dict[str, list[Image]]:
    """Prepared images of some cases, evenly spaced over each dataset."""
    images: dict[str, list[Image]] = {}
    for dataset_config in config.datasets:
        dataset = discover(dataset_config, config.source_root)
        count = min(cases_per_dataset, len(dataset.cases))
        chosen = [dataset.cases[index * len(dataset.cases) // count] for index in range(count)]
        volumes = [imaging.load_case(case, dataset.classes, config.max_voxels) for case in chosen]
        surveys = [imaging.survey_case(case.id, volume) for case, volume in zip(chosen, volumes, strict=True)]
        recipe = imaging.resolve_recipe(
            dataset_config, dataset.classes, dataset.modalities, surveys, config.storage
        )
        images[dataset.name] = [imaging.prepare(volume, recipe)[0].image for volume in volumes]
    return images


def write(folder: Path, numbers: list[Image], codec: list[Any], config: PreprocessConfig) -> float:
    """Store arrays as the store does; returns CPU seconds."""
    shutil.rmtree(folder, ignore_errors=True)
    start_s = time.process_time()
    for index, values in enumerate(numbers):
        _, depth, height, width = values.shape
        chunk, shard = chunk_grid((depth, height, width), config.storage.chunk, config.storage.shard)
        array = zarr.create_array(
            folder / str(index),
            shape=values.shape,
            dtype=values.dtype,
            chunks=(1, *chunk),
            shards=(1, *shard),
            compressors=[*codec, Crc32cCodec()],
            fill_value=0,
            config={"write_empty_chunks": True},
        )
        array[...] = values
    return time.process_time() - start_s


def read(folder: Path, shapes: list[tuple[int, ...]], seed: int) -> float:
    """Read random boxes of all arrays, all in flight at once; returns CPU seconds."""
    rng = np.random.default_rng(seed)
    context = ts.Context({"cache_pool": {"total_bytes_limit": 0}})
    handles = [
        ts.open(
            {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/{index}/"}},
            context=context, open=True, read=True,
        ).result()
        for index in range(len(shapes))
    ]  # fmt: skip
    start_s = time.process_time()
    pending = []
    for handle, (_, *sides) in zip(handles, shapes, strict=True):
        for _ in range(BOXES_PER_CASE):
            sizes = [min(side, wanted) for side, wanted in zip(sides, BOX, strict=True)]
            starts = [int(rng.integers(0, side - size + 1)) for side, size in zip(sides, sizes, strict=True)]
            box = tuple(slice(a, a + size) for a, size in zip(starts, sizes, strict=True))
            pending.append(handle[(0, *box)].read())
    for reading in pending:
        reading.result().astype(np.float32)
    return time.process_time() - start_s


def measure(config: PreprocessConfig, cases_per_dataset: int, rounds: int) -> dict[str, Any]:
    """All ways over all datasets."""
    images = prepared(config, cases_per_dataset)
    flat = [image for group in images.values() for image in group]
    shapes = [image.shape for image in flat]
    ways = [Way(kind, codec) for kind in TYPES for codec in CODECS]
    with tempfile.TemporaryDirectory() as scratch:
        for round_number in range(rounds):
            for way in ways:
                stored = [TYPES[way.type](image) for image in flat]
                numbers = [values for values, _ in stored]
                folder = Path(scratch, f"{way.type} {way.codec}".replace(" ", "_"))
                way.write_s.append(write(folder, numbers, CODECS[way.codec], config))
                way.read_s.append(read(folder, shapes, round_number))
                if round_number == 0:
                    _account(way, folder, images, stored)
                shutil.rmtree(folder)
    voxels = sum(image.size for image in flat)
    return {
        "cases": {name: len(group) for name, group in images.items()},
        "voxels": {name: sum(image.size for image in group) for name, group in images.items()},
        "box": BOX,
        "rounds": rounds,
        "ways": [_figures(way, images, voxels, len(flat) * BOXES_PER_CASE) for way in ways],
    }


def _account(
    way: Way, folder: Path, images: dict[str, list[Image]], stored: list[tuple[Image, Scaling]]
) -> None:
    """Sizes and errors of a way."""
    index = 0
    for name, group in images.items():
        size_bytes = 0
        for image in group:
            size_bytes += sum(
                path.stat().st_size for path in Path(folder, str(index)).rglob("*") if path.is_file()
            )
            values, scaling = stored[index]
            error = values.astype(np.float64) * scaling.scale_factor + scaling.add_offset - image
            way.max_error = max(way.max_error, float(np.abs(error).max()))
            way.squared_error += float(np.square(error).sum())
            index += 1
        way.bytes_by_dataset[name] = size_bytes


def _figures(way: Way, images: dict[str, list[Image]], voxels: int, boxes: int) -> dict[str, Any]:
    ratios = {
        name: 2 * sum(image.size for image in images[name]) / size
        for name, size in way.bytes_by_dataset.items()
    }
    return {
        "type": way.type,
        "codec": way.codec,
        "ratio": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "mean_ratio": round(math.exp(sum(map(math.log, ratios.values())) / len(ratios)), 3),
        "max_error": float(f"{way.max_error:.3g}"),
        "rms_error": float(f"{math.sqrt(way.squared_error / voxels):.3g}"),
        "write_mb_per_cpu_s": round(2e-6 * voxels / min(way.write_s), 1),
        "boxes_per_cpu_s": round(boxes / min(way.read_s), 1),
    }


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    names = list(result["cases"])
    head = f"{'type':17} {'codec':23} {'ratio':>6} " + " ".join(f"{name:>11}" for name in names)
    lines = [f"{head} {'max error':>10} {'rms error':>10} {'write MB/s':>10} {'boxes/s':>8} (per CPU second)"]
    for way in result["ways"]:
        ratios = " ".join(f"{way['ratio'][name]:11.2f}" for name in names)
        lines.append(
            f"{way['type']:17} {way['codec']:23} {way['mean_ratio']:6.2f} {ratios} {way['max_error']:10.2e} "
            f"{way['rms_error']:10.2e} {way['write_mb_per_cpu_s']:10.1f} {way['boxes_per_cpu_s']:8.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="a preprocessing config")
    parser.add_argument("--cases", type=int, default=12, help="cases per dataset")
    parser.add_argument("--rounds", type=int, default=5, help="times each way is measured; the best counts")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    flags = parser.parse_args()
    config = load_config(PreprocessConfig, "storage_types", ["--config", flags.config])
    result = measure(config, flags.cases, flags.rounds)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write((json.dumps(result) if flags.json else table(result)) + "\n")


if __name__ == "__main__":
    main()
