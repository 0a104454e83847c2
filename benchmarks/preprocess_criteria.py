"""What preprocessing must reach, each as a number beside its bound."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.criteria import Criterion

SPEED, SCALING = 2.0, 1.7
ERROR_STD, SIZE = 1e-3, 0.7
RAW_VOLUMES, PROCESS_BYTES = 4, 300_000_000
"""A worker may hold so many raw volumes, and so much besides."""

Record = dict[str, Any]


def judge(record: Record, quick: bool) -> list[Criterion]:
    """Every requirement. A quick run's one volume, measured once, tells nothing of speed and memory."""
    loud = [
        *_each(record["chain"], "speed over MONAI's", lambda row: row["equivalent"]["ratio"], SPEED, True),
        *_memory(record["memory"]),
        *_each(record.get("scaling", {}), "two CPUs over one", lambda row: row["ratio"], SCALING, True),
    ]
    if quick:
        loud = [replace(criterion, passed=None) for criterion in loud]
    chains, sizes = record["chain"].values(), record["sizes"]
    apart = max(row["equivalent"]["max_error_std"] for row in chains)
    error = max(row["max_error_std"] for row in sizes.values())
    return [
        *loud,
        _criterion("largest difference from MONAI's values, standard deviations", apart, ERROR_STD),
        *_each(sizes, "bytes over nnU-Net's", lambda row: row["ratio"], SIZE, False),
        _criterion("largest error of what is stored, standard deviations", error, ERROR_STD),
    ]


def _each(rows: Record, name: str, value: Any, bound: float, at_least: bool) -> list[Criterion]:
    return [_criterion(f"{name}: {volumes}", value(row), bound, at_least) for volumes, row in rows.items()]


def _memory(memory: Record) -> list[Criterion]:
    bound = RAW_VOLUMES * memory["raw_bytes"] + PROCESS_BYTES
    name = f"peak memory of a worker over {RAW_VOLUMES} raw volumes and {PROCESS_BYTES // 10**6} MB"
    return [
        _criterion(f"{name}: {work}", peak / bound, 1.0, note=f"{peak / 1e6:.0f} of {bound / 1e6:.0f} MB")
        for work, peak in memory["peak_bytes"].items()
    ]


def _criterion(name: str, value: float, bound: float, at_least: bool = False, note: str = "") -> Criterion:
    return Criterion(name, value, bound, at_least, value >= bound if at_least else value <= bound, note)
