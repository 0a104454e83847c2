"""A model of a data-parallel step: time and memory of one rank, from a few measured or assumed pieces.

    step   = compute of the rank's b samples * slowdown by shared cores
           + gather of embeddings and log-sums + small exchanges
           + what of the gradients' exchange the backward pass does not hide
    memory = m0 + m1 * b + gathered rows + copies of gradients

An exchange among W ranks takes `rounds(W) * latency + bytes / rate`. A ring moves (W - 1) / W of the bytes to
gather, twice that to reduce; its rounds are W - 1 and twice that, a tree's log2 W.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

FLOAT_BYTES = 4
SMALL_EXCHANGES = 4
"""A step's exchanges of some numbers, such as whether all of it is finite."""


@dataclass(frozen=True)
class Line:
    """`fixed + per_one * n`."""

    fixed: float
    per_one: float

    def at(self, n: float) -> float:
        """The value at n."""
        return self.fixed + self.per_one * n


def fit_line(points: Mapping[float, float]) -> Line:
    """By least squares of relative deviations; neither part is negative. Two points at least."""
    if len(points) < 2:
        raise ValueError(f"a line needs two points, got {len(points)}")
    weights = {x: 1.0 / y**2 for x, y in points.items()}
    whole = sum(weights.values())
    mean_x = sum(w * x for x, w in weights.items()) / whole
    mean_y = sum(w * points[x] for x, w in weights.items()) / whole
    spread = sum(w * (x - mean_x) ** 2 for x, w in weights.items())
    slope = sum(w * (x - mean_x) * (points[x] - mean_y) for x, w in weights.items()) / spread
    if slope < 0.0:
        return Line(mean_y, 0.0)
    if mean_y - slope * mean_x < 0.0:  # through the origin instead
        slope = sum(w * x * points[x] for x, w in weights.items()) / sum(
            w * x * x for x, w in weights.items()
        )
        return Line(0.0, slope)
    return Line(mean_y - slope * mean_x, slope)


def ring_rounds(world_size: int) -> float:
    """Rounds of a ring's gather."""
    return world_size - 1.0


def tree_rounds(world_size: int) -> float:
    """Rounds of a tree."""
    return math.log2(world_size) if world_size > 1 else 0.0


@dataclass(frozen=True)
class Exchange:
    """What it takes ranks to exchange something."""

    latency_s: float
    bytes_per_s: float
    rounds: Callable[[int], float] = ring_rounds

    def gather_s(self, world_size: int, whole_bytes: float) -> float:
        """Every rank gets the `whole_bytes` that all hold together."""
        foreign = whole_bytes * (world_size - 1) / world_size
        return self.rounds(world_size) * self.latency_s + foreign / self.bytes_per_s

    def reduce_s(self, world_size: int, size_bytes: float) -> float:
        """Every rank gets the sum of what each holds `size_bytes` of."""
        return 2.0 * self.gather_s(world_size, size_bytes)


def fit_exchange(
    gathers: Mapping[float, float], reductions: Mapping[float, float], world_size: int
) -> Exchange:
    """From seconds by bytes (whole ones of a gather) among so many ranks."""
    points: dict[float, list[float]] = {}
    for whole, seconds in gathers.items():
        points.setdefault(whole * (world_size - 1) / world_size, []).append(seconds)
    for size, seconds in reductions.items():
        points.setdefault(size * (world_size - 1) / world_size, []).append(seconds / 2.0)
    line = fit_line({moved: sum(found) / len(found) for moved, found in points.items()})
    return Exchange(line.fixed / ring_rounds(world_size), 1.0 / max(line.per_one, 1e-15))


@dataclass(frozen=True)
class Network:
    """What of a network the exchanges depend on."""

    parameters: int
    """Those that a stage trains."""
    embedding_size: int

    @property
    def gradient_bytes(self) -> float:
        """In float32."""
        return float(FLOAT_BYTES * self.parameters)

    def gathered_bytes(self, global_batch: int) -> float:
        """Embeddings of both views of all samples, and a log-sum each."""
        return float(2 * global_batch * (self.embedding_size + 1) * FLOAT_BYTES)


@dataclass(frozen=True)
class Step:
    """A predicted step, in seconds."""

    compute_s: float
    gather_s: float
    small_s: float
    gradients_s: float
    """Not hidden behind the backward pass."""

    @property
    def whole_s(self) -> float:
        """All of it."""
        return self.compute_s + self.gather_s + self.small_s + self.gradients_s


def core_share(world_size: int, cores: int, slowdown: float) -> float:
    """How much longer ranks of one thread compute than one alone: `slowdown` is that of as many ranks as
    there are cores (memory and caches are shared); more ranks than cores take turns.
    """
    busy = min(world_size, cores)
    shared = 1.0 + (slowdown - 1.0) * (busy - 1) / max(1, cores - 1)
    return shared * max(1.0, world_size / cores)


def predict_step(
    compute: Line,
    exchange: Exchange,
    network: Network,
    *,
    world_size: int,
    global_batch: int,
    share: float,
    hidden_share: float,
) -> Step:
    """A step of `world_size` ranks. `share` is `core_share`; `hidden_share` of the gradients' exchange goes
    on beside the backward pass, none where no core is left for it.
    """
    compute_s = compute.at(global_batch / world_size) * share
    if world_size == 1:
        return Step(compute_s, 0.0, 0.0, 0.0)
    gather_s = exchange.gather_s(world_size, network.gathered_bytes(global_batch))
    small_s = SMALL_EXCHANGES * exchange.reduce_s(world_size, 64.0)
    gradients_s = exchange.reduce_s(world_size, network.gradient_bytes)
    return Step(compute_s, gather_s, small_s, gradients_s * (1.0 - hidden_share))


def predict_memory(
    memory_mib: Line, network: Network, *, world_size: int, global_batch: int, gradient_copies: int
) -> float:
    """MiB of one rank."""
    mib = memory_mib.at(global_batch / world_size)
    if world_size > 1:
        mib += network.gathered_bytes(global_batch) / 2**20
        mib += gradient_copies * network.gradient_bytes / 2**20
    return mib


def errors(predicted: Sequence[float], measured: Sequence[float]) -> list[float]:
    """Relative errors of predictions."""
    return [p / m - 1.0 for p, m in zip(predicted, measured, strict=True)]
