"""What the machine can do at most: large matrix products, measured in turns with the arms."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.step_ours import drain

if TYPE_CHECKING:
    from benchmarks.step_turns import ArmSpec, Turns

SIDES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
_PRODUCTS_S = 0.2
"""Products are done until they have taken as long."""


def run(spec: ArmSpec, turns: Turns) -> None:
    """In each step, the products of all sides; the ceiling is the fastest side's rate."""
    device, precision = torch.device(spec.device), spec.options["precision"]
    dtype = getattr(torch, precision)
    sides = spec.options.get("sides", SIDES[spec.device])
    factors = {
        side: [torch.randn(side, side, device=device, dtype=dtype) for _ in range(2)] for side in sides
    }
    rates: dict[int, float] = {}
    while True:
        for side, (left, right) in factors.items():
            rates[side] = max(rates.get(side, 0.0), product_rate(left, right, device))
        turns.after_step(
            lambda: {"flops_per_s": max(rates.values()), "by_side": {str(k): v for k, v in rates.items()}},
            rates.clear,
            lambda: {"precision": precision, "threads": torch.get_num_threads()},
            lambda: drain(device),
        )


def product_rate(left: torch.Tensor, right: torch.Tensor, device: torch.device) -> float:
    """Floating-point operations per second of a product, over some tenths of a second."""
    out = left @ right
    drain(device)
    start_s, products = time.perf_counter(), 0
    at_once = 1 if device.type == "cpu" else 20
    while (elapsed_s := time.perf_counter() - start_s) < _PRODUCTS_S:
        for _ in range(at_once):
            torch.mm(left, right, out=out)
        drain(device)
        products += at_once
    return float(2 * left.shape[0] * left.shape[1] * right.shape[1] * products / elapsed_s)


def summary(turns: list[dict[str, Any]]) -> float:
    """The highest rate of all turns: a ceiling is not lowered by what else the machine did."""
    return float(max(turn["flops_per_s"] for turn in turns))
