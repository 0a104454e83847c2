"""What the loader must reach, each as a number beside its bound."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

from benchmarks.criteria import Criterion
from benchmarks.loader_s3 import ON_DISK

Figures = dict[str, Any]

_WARM = "warm local disk: patches/s over the best peer's"


def judge(local: list[Figures], s3: Figures, quick: bool) -> list[Criterion]:
    """Every requirement: those of local disk in the first scenario, the equality in all.

    A quick run's volumes are too small to judge speed and memory by; its values are stated without a verdict.
    """
    found = [
        _against_peers(local[0], "ours", "steady", 2.0, f"{_WARM}, as the device takes them"),
        _against_peers(local[0], "ours, made float32", "steady", 2.0, f"{_WARM}, made float32 on the cores"),
        *_memory(local[0]),
        _against_peers(local[0], "ours", "first", 1.0, "cold local disk: patches/s over the best peer's"),
        *_from_s3(s3),
    ]
    if quick:
        found = [replace(criterion, passed=None) for criterion in found]
    return [*found, *_equality([*local, s3])]


def _equality(scenarios: list[Figures]) -> list[Criterion]:
    unequal = sum(arm["unequal"] for scenario in scenarios for arm in scenario["arms"])
    missing = sum(arm["expected"] - arm["checked"] for scenario in scenarios for arm in scenario["arms"])
    checked = sum(arm["checked"] for scenario in scenarios for arm in scenario["arms"])
    return [
        _criterion("patches unlike the reference reader's", unequal, 0, note=f"{checked} compared a round"),
        _criterion("patches that were never delivered", missing, 0),
    ]


def _criterion(name: str, value: float, bound: float, at_least: bool = False, note: str = "") -> Criterion:
    return Criterion(name, value, bound, at_least, value >= bound if at_least else value <= bound, note)


def _rates(arm: Figures, window: str) -> list[float]:
    rates: list[float] = arm[window]["patches_per_s"]["values"]
    return rates


def _by_round(ours: list[float], others: list[float]) -> float:
    """The median of the rounds' ratios: what disturbs a round disturbs both sides of its ratio."""
    return statistics.median(a / b for a, b in zip(ours, others, strict=True))


def _against_peers(scenario: Figures, ours: str, window: str, bound: float, name: str) -> Criterion:
    arms = {arm["arm"]: _rates(arm, window) for arm in scenario["arms"]}
    peers = {arm: rates for arm, rates in arms.items() if not arm.startswith("ours")}
    best = max(peers, key=lambda peer: statistics.median(peers[peer]))
    ratio = _by_round(arms[ours], peers[best])
    return _criterion(name, ratio, bound, at_least=True, note=f"{best}; {scenario['scenario']}")


def _memory(scenario: Figures) -> list[Criterion]:
    """Growth over the libraries'. A mapped cache's pages count as ours though the system may drop them."""
    arms = {arm["arm"]: arm["memory_mib"] for arm in scenario["arms"]}
    ours, peer = arms["ours"], arms["MONAI CacheDataset"]
    total = (ours["private"] + ours["file"]) / (peer["private"] + peer["file"])
    private = ours["private"] / peer["private"]
    return [
        _criterion("memory over CacheDataset's, mapped files included", total, 0.5),
        _criterion("memory over CacheDataset's, without files the system can drop", private, 0.5),
    ]


def _from_s3(s3: Figures) -> list[Criterion]:
    arms = {arm["arm"]: arm for arm in s3["arms"]}
    ours, zarr, on_disk = arms["ours"], arms["zarr-python"], arms[ON_DISK]
    gets = ours["first"]["gets_per_patch"] / zarr["first"]["gets_per_patch"]
    ratio = _by_round(_rates(ours, "first"), _rates(zarr, "first"))
    again = _by_round(_rates(ours, "steady"), _rates(on_disk, "steady"))
    sent = ours["steady"]["served"]["bytes_sent"]
    return [
        _criterion("S3, first epoch: GETs per patch over zarr-python's", gets, 0.2),
        _criterion("S3, first epoch: patches/s over zarr-python's", ratio, 3.0, at_least=True),
        _criterion("S3, second epoch: patches/s over local disk's", again, 0.9, at_least=True),
        _criterion("S3, second epoch: bytes from S3", sent, 0),
    ]
