"""What the order of a convolution's numbers in memory costs on this CPU: single layers, and whole networks.

    python -m benchmarks.layouts --json > benchmarks/results/layouts.json

Milliseconds of processor time of one thread, forward and backward, on 16 patches; the median of some
repetitions. `default` has the channels first, `last` copies a layer's input into the layout with the channels
last and its output back, both copies counted. A network's step is measured as `hssl_dist` does it, with all
layers in the default layout, and with the whole network's channels last, in turns; its forward pass for one
window alone and for two, as `hssl_dist` does it, as that does it where gradients are wanted (`learning`), and
as torch does. bfloat16 is measured where `precision: auto` takes it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measuring import load_average, machine
from benchmarks.plain_convolutions import with_plain_convolutions
from hssl_dist.config.network import NetworkConfig
from hssl_dist.networks.unet import ResidualUNet
from hssl_dist.records import Shape
from hssl_dist.training.precision import resolved

_PATCHES = 16
_CLASSES = 3
_CUBE: Shape = (3, 3, 3)
_FLAT: Shape = (1, 3, 3)
_LAYERS: tuple[tuple[int, int, Shape, Shape], ...] = (
    (1, 8, _CUBE, (32, 40, 32)),
    (8, 8, _CUBE, (32, 40, 32)),
    (16, 8, _CUBE, (32, 40, 32)),
    (16, 16, _CUBE, (32, 40, 32)),
    (32, 32, _CUBE, (16, 20, 16)),
    (8, 3, (1, 1, 1), (32, 40, 32)),
    (8, 8, _FLAT, (8, 48, 48)),
    (16, 16, _FLAT, (8, 48, 48)),
)
"""Channels in and out, kernel, and voxels of a patch."""
_NETWORKS: dict[str, tuple[NetworkConfig, Shape, Shape]] = {
    "hippocampus": (
        NetworkConfig(
            widths=(8, 16, 32, 64),
            strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
            kernels=(_CUBE, _CUBE, _CUBE, _CUBE),
            encoder_blocks=(1, 1, 1, 1),
            decoder_blocks=(1, 1, 1),
        ),
        (32, 40, 32),
        (40, 56, 40),
    ),
    "acdc": (
        NetworkConfig(
            widths=(8, 16, 32, 64, 64),
            strides=((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 2, 2)),
            kernels=(_FLAT, _FLAT, _FLAT, _CUBE, _CUBE),
            encoder_blocks=(1, 1, 1, 1, 1),
            decoder_blocks=(1, 1, 1, 1),
        ),
        (8, 48, 48),
        (8, 96, 96),
    ),
    "default": (NetworkConfig(), (16, 48, 48), (16, 96, 96)),
}
"""Those of configs/study/real.yaml, its views and its windows; and the default network."""


def _milliseconds(work: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Of each work, in turns; before them each is done once."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(1 + repetitions):
        for name, do in work.items():
            start_s = time.process_time()
            do()
            taken[name].append(1e3 * (time.process_time() - start_s))
    return {name: round(statistics.median(times[1:]), 1) for name, times in taken.items()}


def _layer(
    channels: tuple[int, int], kernel: Shape, size: Shape, dtype: torch.dtype, layout: torch.memory_format
) -> Callable[[], object]:
    layer = nn.Conv3d(*channels, kernel, padding=tuple(length // 2 for length in kernel)).to(dtype)
    x = torch.randn(_PATCHES, channels[0], *size, dtype=dtype, requires_grad=True)

    def forward() -> Tensor:
        y: Tensor = layer(x.contiguous(memory_format=layout))
        return y.contiguous()

    gradient = torch.randn_like(forward())
    return lambda: forward().backward(gradient)


def _step(config: NetworkConfig, size: Shape, dtype: torch.dtype, way: str) -> Callable[[], object]:
    network = _network(config, as_torch_does=way == "default")
    x = torch.randn(_PATCHES, 1, *size)
    if way == "last":
        network, x = _channels_last(network), x.contiguous(memory_format=torch.channels_last_3d)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            outputs = network(x)
        sum(output.float().square().mean() for output in outputs).backward()

    return step


def _windows(config: NetworkConfig, size: Shape, count: int, way: str) -> Callable[[], object]:
    network = _network(config, as_torch_does=way == "default").eval().requires_grad_(requires_grad=False)
    x = torch.randn(count, 1, *size)

    def predict() -> None:
        with torch.set_grad_enabled(way == "learning"):
            network(x)

    return predict


def _network(config: NetworkConfig, *, as_torch_does: bool) -> ResidualUNet:
    network = ResidualUNet(config, in_channels=1, classes=_CLASSES)
    return with_plain_convolutions(network) if as_torch_does else network


def _channels_last(network: ResidualUNet) -> ResidualUNet:
    return network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload,no-any-return]


def measure(repetitions: int) -> dict[str, Any]:
    """The record, as it is written to JSON."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    before = load_average()
    layouts = {"default": torch.contiguous_format, "last": torch.channels_last_3d}
    dtypes = {"float32": torch.float32}
    if resolved("auto", torch.device("cpu")) == "bfloat16":
        dtypes["bfloat16"] = torch.bfloat16
    layers = []
    for wide, narrow, kernel, size in _LAYERS:
        work = {
            f"{name} {layout}": _layer((wide, narrow), kernel, size, dtype, layouts[layout])
            for name, dtype in dtypes.items()
            for layout in layouts
        }
        measured = _milliseconds(work, repetitions)
        layers.append({"channels": [wide, narrow], "kernel": kernel, "size": size, **measured})
    networks, windows = {}, {}
    for task, (config, size, window) in _NETWORKS.items():
        steps = {
            f"{name} {way}": _step(config, size, dtype, way)
            for name, dtype in dtypes.items()
            for way in ("ours", "default", "last")
        }
        networks[task] = _milliseconds(steps, repetitions)
        passes = {
            f"{way}, {'alone' if count == 1 else 'two'}": _windows(config, window, count, way)
            for way in ("ours", "learning", "default")
            for count in (1, 2)
        }
        windows[task] = _milliseconds(passes, repetitions)
    return {
        "layers": layers,
        "networks": networks,
        "windows": windows,
        "repetitions": repetitions,
        "machine": machine(),
        "load_average": {"before": before, "after": load_average()},
    }


def table(record: dict[str, Any]) -> str:
    """The figures for people."""
    rows = [
        (f"{row['channels'][0]} to {row['channels'][1]}, {'x'.join(map(str, row['kernel']))}", row)
        for row in record["layers"]
    ]
    rows += [(f"{name}, a step", row) for name, row in record["networks"].items()]
    rows += [(f"{name}, a window", row) for name, row in record["windows"].items()]
    return "\n".join(
        f"{title}: "
        + ", ".join(f"{key} {value:.0f} ms" for key, value in row.items() if isinstance(value, float))
        for title, row in rows
    )


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--repetitions", type=int, default=5, help="of each measurement")
    flags = parser.parse_args()
    record = measure(flags.repetitions)
    sys.stdout.write((json.dumps(record, indent=1) if flags.json else table(record)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
