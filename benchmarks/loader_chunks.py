"""python -m benchmarks.loader_chunks [--json]

How volumes are best cut for reading regions without the node's cache: patches per second, GETs and bytes
fetched per byte used, of chunk and shard sizes, from warm local disk and from a real S3 server. Each
measurement is a process of its own. A Markdown table, or with --json the record, goes to standard output.
It takes about five minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.loader_data import Prepared, draw_patches, generate
from benchmarks.loader_local import BATCH
from benchmarks.loader_process import run_arm
from benchmarks.loader_s3 import upload
from benchmarks.measuring import end_cleanly_when_asked, load_average, machine
from hssl_dist.config.preprocess import StorageConfig
from hssl_dist.console import Console
from hssl_dist.jobs.lineage import code_version
from tests.s3.server import S3Server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hssl_dist.records import Shape

SHAPE, VOLUMES = (256, 256, 256), 2
CUTS: tuple[tuple[Shape, Shape], ...] = (
    ((32, 32, 32), (256, 256, 256)),
    ((32, 32, 32), (128, 128, 128)),
    ((64, 64, 64), (256, 256, 256)),
    ((64, 64, 64), (128, 128, 128)),
    ((16, 64, 64), (256, 256, 256)),
    ((128, 128, 128), (256, 256, 256)),
)
PATCHES: tuple[Shape, ...] = ((96, 96, 96), (24, 72, 72))
_COUNT = 48
_WARM_S = 1.5
_DEADLINE_S = 120.0

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loader_chunks", description="Measure chunk sizes."
    )
    parser.add_argument("--json", action="store_true", help="print the record instead of a table")
    options = parser.parse_args(arguments)
    end_cleanly_when_asked()
    before, console = load_average(), Console()
    with tempfile.TemporaryDirectory(prefix="hssl-chunks-") as scratch:
        folder = Path(scratch, "server")
        folder.mkdir()
        with S3Server(folder) as server:
            rows = [
                row
                for number, cut in enumerate(CUTS)
                for row in _measure(cut, Path(scratch, str(number)), server, console)
            ]
    record = {
        "command": "python -m benchmarks.loader_chunks --json",
        "code": code_version(),
        "machine": machine(),
        "load_average": {"before": before, "after": load_average()},
        "rows": rows,
    }
    sys.stdout.write(json.dumps(record, indent=1) + "\n" if options.json else table(rows))
    return 0


def _measure(cut: tuple[Shape, Shape], folder: Path, server: S3Server, console: Console) -> list[Row]:
    chunk, shard = cut
    console.say(f"chunk {chunk}, shard {shard}")
    local = generate(str(folder), SHAPE, VOLUMES, StorageConfig(chunk=chunk, shard=shard))
    remote = upload(server, local, f"cut{folder.name}")
    stored = sum(path.stat().st_size for path in Path(local.store).rglob("*") if path.is_file())
    return [_row(cut, patch, local, remote, stored, server) for patch in PATCHES]


def _row(
    cut: tuple[Shape, Shape], patch: Shape, local: Prepared, remote: Prepared, stored: int, server: S3Server
) -> Row:
    draws = draw_patches(local, patch, BATCH, _COUNT)
    at_disk = run_arm("ours, no cache", local, draws, _WARM_S, _DEADLINE_S)
    at_s3 = run_arm("ours, no cache", remote, draws, _WARM_S, _DEADLINE_S, server.environment)
    disk, s3, used = at_disk["steady"], at_s3["first"], 2 * math.prod(patch)
    return {
        "chunk": cut[0],
        "shard": cut[1],
        "patch": patch,
        "stored_bytes": stored,
        "disk_patches_per_s": disk["patches"] / disk["wall_s"],
        "disk_cpu_s_per_patch": disk["cpu_s"] / disk["patches"],
        "s3_patches_per_s": s3["patches"] / s3["wall_s"],
        "gets_per_patch": s3["served"]["gets"] / s3["patches"],
        "fetched_per_used": s3["served"]["bytes_sent"] / s3["patches"] / used,
    }


def table(rows: list[Row]) -> str:
    """For people, in Markdown."""
    names = (
        "chunk",
        "shard",
        "patch",
        "stored MB",
        "disk patches/s",
        "CPU ms",
        "S3 patches/s",
        "GETs a patch",
    )
    header = "| " + " | ".join((*names, "fetched per used")) + " |"
    lines = [header, "|" + " --- |" * (len(names) + 1)]
    lines += [
        f"| {_sides(row['chunk'])} | {_sides(row['shard'])} | {_sides(row['patch'])} | "
        f"{row['stored_bytes'] / 1e6:.1f} | {row['disk_patches_per_s']:.0f} | "
        f"{1e3 * row['disk_cpu_s_per_patch']:.1f} | {row['s3_patches_per_s']:.1f} | "
        f"{row['gets_per_patch']:.1f} | {row['fetched_per_used']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _sides(shape: Shape) -> str:
    return " x ".join(map(str, shape))


if __name__ == "__main__":
    sys.exit(main())
