"""The step's model beyond this machine: from stated assumptions to time, cost and the first wall hit."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.scaling_cost import SampleCost, sample_cost
from benchmarks.scaling_model import Exchange, tree_rounds
from hssl_dist.config.loading import load_config
from hssl_dist.config.pretrain import PretrainConfig

FOLDER = Path(__file__).parent
ASSUMPTIONS, CONFIG = FOLDER / "scaling_assumptions.yaml", FOLDER / "gpu.yaml"
RESULTS = FOLDER / "results"
_GIB = float(1 << 30)
_RECORDED_REGION_BYTES = 2.0 * 24 * 72 * 72
_MOMENTS = 4
"""Copies of the trained weights in float32: themselves, their gradients and AdamW's two moments."""
_BACKWARD_OF_STEP = 2.0 / 3.0


_VALUE = {"kind", "value", "source"}
_KEYS = {
    "record": {"kind", "record", "of", "path", "divide", "divide_by"},
    "published": _VALUE,
    "assumption": _VALUE,
}


@dataclass(frozen=True)
class Assumption:
    """One input, and where it is from."""

    section: str
    name: str
    value: float
    kind: str
    source: str


def assumptions(path: Path = ASSUMPTIONS, results: Path = RESULTS) -> list[Assumption]:
    """All inputs; those of kind `record` read from their record."""
    found = []
    for section, entries in yaml.safe_load(path.read_text()).items():
        if section == "gpus":
            continue
        for name, entry in entries.items():
            if odd := entry.keys() - _KEYS[entry["kind"]]:
                raise ValueError(
                    f"{path}: {section}.{name} has {', '.join(sorted(odd))}; quote what has commas"
                )
            if entry["kind"] == "record":
                value, source = _recorded(entry, results), f"{entry['record']}: {entry['of']}"
            else:
                value, source = float(entry["value"]), str(entry["source"])
            found.append(Assumption(section, name, value, entry["kind"], source))
    return found


def by_key(known: list[Assumption]) -> dict[str, float]:
    """Values by `section.name`."""
    return {f"{a.section}.{a.name}": a.value for a in known}


def gpu_counts(path: Path = ASSUMPTIONS) -> list[int]:
    """The table's rows."""
    counts: list[int] = yaml.safe_load(path.read_text())["gpus"]
    return counts


def _recorded(entry: dict[str, Any], results: Path) -> float:
    record = json.loads((results / entry["record"]).read_text())
    value = _at(record, entry["path"]) / float(entry.get("divide", 1))
    return value / _at(record, entry["divide_by"]) if "divide_by" in entry else value


def _at(record: Any, path: list[Any]) -> float:
    for key in path:
        record = record[key]
    return float(record)


@dataclass(frozen=True)
class Wall:
    """A resource, how much of it a run takes (1 is all), and what to do once that is too much."""

    name: str
    taken: float
    remedy: str


@dataclass(frozen=True)
class Row:
    """A run on so many GPUs; times are means over both stages."""

    gpus: int
    global_batch: int
    compute_s: float
    gather_s: float
    gradients_s: float
    waiting_s: float
    """For the slowest rank."""
    data_s: float
    """What reading takes beyond the rest of the step."""
    samples_per_s: float
    efficiency: float
    """Samples/s a GPU, over those of one GPU."""
    memory_gib: float
    steps: float
    hours: float
    dollars: float
    lost_share: float
    """Of the time, by faults."""
    cached: bool
    """Whether the node's cache is of use: it is filled from the store first."""
    wanted_bytes_per_s: float
    """From the store, by all nodes, for the step not to wait for it."""
    walls: list[Wall]

    @property
    def per_gpu(self) -> float:
        """Samples of a step that a GPU has."""
        return self.global_batch / self.gpus

    @property
    def gpu_hours(self) -> float:
        """Hours of all GPUs."""
        return self.hours * self.gpus

    @property
    def wall(self) -> Wall:
        """The resource that is taken most."""
        return max(self.walls, key=lambda wall: wall.taken)


def plan(
    known: list[Assumption], gpus: list[int], config: PretrainConfig | None = None
) -> tuple[dict[str, SampleCost], list[Row]]:
    """The network's costs by stage, and the rows."""
    config = config or load_config(PretrainConfig, "scaling", ["--config", str(CONFIG)])
    costs = {stage: sample_cost(config, stage) for stage in ("encoder", "decoder")}  # type: ignore[arg-type]
    given = by_key(known)
    embedding = config.objective.projection_size
    region_bytes = 2.0 * math.prod(
        math.ceil(s * (1 + config.sampling.margin)) for s in config.sampling.patch_size
    )
    alone = _row(1, given, costs, embedding, region_bytes, None)
    return costs, [_row(count, given, costs, embedding, region_bytes, alone) for count in gpus]


def _row(
    gpus: int,
    given: dict[str, float],
    costs: dict[str, SampleCost],
    embedding: int,
    region_bytes: float,
    alone: Row | None,
) -> Row:
    batch = max(
        int(min(gpus * given["training.batch_per_gpu"], given["training.largest_global_batch"])), gpus
    )
    per_gpu, nodes = batch / gpus, math.ceil(gpus / given["gpu.per_node"])
    compute_s = _compute_s(given, costs, per_gpu, batch, embedding)
    gather_s, gradients_s, waiting_s = _ranks_s(given, costs, gpus, batch, embedding, compute_s)
    alone_s = compute_s + gather_s + gradients_s + waiting_s
    walls, data_s, reading = _data(given, batch, per_gpu, nodes, alone_s, region_bytes)
    step_s = alone_s + data_s
    samples = given["data.volumes"] * given["data.regions_per_volume"]
    samples_per_s, steps, lost = batch / step_s, samples / batch, _lost(given, gpus)
    memory_gib = given["gpu.fixed_memory_gib"] + max(
        _memory(cost, per_gpu, batch, embedding) for cost in costs.values()
    )
    hours = samples / samples_per_s / 3600 / (1.0 - lost)
    return Row(
        gpus=gpus,
        global_batch=batch,
        compute_s=compute_s,
        gather_s=gather_s,
        gradients_s=gradients_s,
        waiting_s=waiting_s,
        data_s=data_s,
        samples_per_s=samples_per_s,
        efficiency=1.0 if alone is None else samples_per_s / gpus / alone.samples_per_s,
        memory_gib=memory_gib,
        steps=steps,
        hours=hours,
        dollars=hours * gpus * given["gpu.dollars_per_hour"],
        lost_share=lost,
        cached=reading.cache,
        wanted_bytes_per_s=reading.stored_bytes / alone_s,
        walls=[*walls, *_gpu_walls(given, memory_gib, steps, gradients_s / step_s, per_gpu)],
    )


def _weights(given: dict[str, float]) -> dict[str, float]:
    """The stages' shares of all steps."""
    share = given["training.encoder_share"]
    return {"encoder": share, "decoder": 1.0 - share}


def _compute_s(
    given: dict[str, float], costs: dict[str, SampleCost], per_gpu: float, batch: int, embedding: int
) -> float:
    """A GPU's own work in a step: network and loss, at a rate that few samples do not reach."""
    weights = _weights(given)
    rate = given["gpu.peak_flops_per_s"] * given["gpu.achieved_share"]
    rate *= per_gpu / (per_gpu + given["gpu.half_batch"])
    loss_flops = 6.0 * (2 * per_gpu) * (2 * batch) * embedding * weights["encoder"]
    return (per_gpu * sum(weights[stage] * cost.flops for stage, cost in costs.items()) + loss_flops) / rate


def _ranks_s(
    given: dict[str, float],
    costs: dict[str, SampleCost],
    gpus: int,
    batch: int,
    embedding: int,
    compute_s: float,
) -> tuple[float, float, float]:
    """What ranks cost each other in a step: gathering embeddings, what of averaging the gradients the
    backward pass does not hide, and waiting for the slowest.
    """
    if gpus == 1:
        return 0.0, 0.0, 0.0
    weights = _weights(given)
    within = gpus <= given["gpu.per_node"]
    link = given[f"network.{'in_node' if within else 'between_nodes'}_bytes_per_s"]
    exchange = Exchange(given["network.latency_s"], link * given["network.usable_share"], tree_rounds)
    gather_s = weights["encoder"] * exchange.gather_s(gpus, 2.0 * batch * (embedding + 1) * 4)
    gather_s += 4 * exchange.reduce_s(gpus, 64.0)
    gradient_bytes = 4.0 * sum(weights[stage] * cost.parameters for stage, cost in costs.items())
    whole_s = exchange.reduce_s(gpus, gradient_bytes)
    hidden_s = min(given["network.hidden_share"] * whole_s, _BACKWARD_OF_STEP * compute_s)
    waiting_s = given["gpu.spread"] * math.sqrt(2.0 * math.log(gpus)) * compute_s
    return gather_s, whole_s - hidden_s, waiting_s


def _gpu_walls(
    given: dict[str, float], memory_gib: float, steps: float, gradients_share: float, per_gpu: float
) -> list[Wall]:
    """What of GPUs and of the method itself is taken; `gradients_share` is of a step's time."""
    return [
        Wall("GPU memory", memory_gib / given["gpu.memory_gib"], "`micro_batch`, or recompute stages"),
        Wall(
            "too few optimiser steps",
            given["training.fewest_steps"] / steps,
            "a smaller global batch on fewer GPUs: the budget is done too soon to need more",
        ),
        Wall(
            "exchange of gradients",
            10.0 * gradients_share,
            "more samples a GPU, or gradients in bfloat16; counted as all taken at a tenth of a step",
        ),
        Wall(
            "GPUs too little to do",
            2.0 * given["gpu.half_batch"] / (per_gpu + given["gpu.half_batch"]),
            "fewer GPUs, larger views, or a larger global batch; counted as all taken at half of the rate",
        ),
    ]


@dataclass(frozen=True)
class _Reading:
    """What a step reads: of all nodes' bytes from the store, and processor time of a GPU's share."""

    cache: bool
    stored_bytes: float
    core_s: float


def _reading(
    given: dict[str, float], batch: int, per_gpu: float, nodes: int, region_bytes: float, *, cache: bool
) -> _Reading:
    """A mean step's, over the whole plan, from empty caches.

    A node's cache is filled with whole volumes, each when a region of it is first drawn there; what it has no
    room for is read region by region, as is all without a cache. Bytes and processor time of a region are
    recorded for 24 x 72 x 72; larger ones take in proportion, and decoding takes in proportion to the bytes.
    """
    volumes = given["data.volumes"]
    regions = volumes * given["data.regions_per_volume"] / nodes  # of one node
    scale = region_bytes / _RECORDED_REGION_BYTES
    fetched, decoding_s = (
        given[f"data.{name}"] * scale for name in ("fetched_bytes_per_region", "core_s_per_region_fetched")
    )
    decoded = volumes * given["data.voxels_per_volume"] * given["data.decoded_bytes_per_voxel"]
    held = min(1.0, given["storage.cache_bytes_per_node"] / decoded) if cache else 0.0
    filled = held * volumes * (1.0 - math.exp(-regions / volumes)) * given["data.stored_bytes_per_volume"]
    node_bytes = filled + (1.0 - held) * regions * fetched
    node_core_s = node_bytes / fetched * decoding_s
    node_core_s += held * regions * given["data.core_s_per_region_cached"] * scale
    share = batch / (volumes * given["data.regions_per_volume"])
    return _Reading(cache, nodes * node_bytes * share, nodes * node_core_s * share * per_gpu / batch)


def _data(
    given: dict[str, float], batch: int, per_gpu: float, nodes: int, step_s: float, region_bytes: float
) -> tuple[list[Wall], float, _Reading]:
    """What reading takes of storage, links and cores, were a step no longer than `step_s`; how much longer it
    makes the step; and whether with a cache, whichever is faster.
    """

    def taken_s(reading: _Reading) -> tuple[float, float, float]:
        return (
            reading.stored_bytes / given["storage.bytes_per_s"],
            reading.stored_bytes / nodes / given["storage.node_bytes_per_s"],
            reading.core_s / given["gpu.cores_per_gpu"],
        )

    ways = [_reading(given, batch, per_gpu, nodes, region_bytes, cache=cache) for cache in (True, False)]
    best = min(ways, key=lambda reading: max(taken_s(reading)))
    store_s, node_s, cores_s = taken_s(best)
    walls = [
        Wall(
            "object storage, all nodes together",
            store_s / step_s,
            "a store with more throughput, or fewer GPUs; that each node draws from its own part of the "
            "volumes, so that caches need not hold all, is not built",
        ),
        Wall("a node's way to storage", node_s / step_s, "a larger node cache, or a faster link"),
        Wall(
            "processor cores that decode", cores_s / step_s, "a larger node cache: what it holds is decoded"
        ),
    ]
    return walls, max(0.0, max(store_s, node_s, cores_s) - step_s), best


def _memory(cost: SampleCost, per_gpu: float, batch: int, embedding: int) -> float:
    """GiB of weights, moments and gradients, of what the backward pass needs, and of all embeddings twice."""
    weights = _MOMENTS * 4.0 * cost.parameters
    gathered = 2.0 * (2.0 * batch * embedding * 4.0)
    return (weights + per_gpu * cost.kept_bytes + gathered) / _GIB


def _lost(given: dict[str, float], gpus: int) -> float:
    """Share of the time that faults cost: coming back, and half of a checkpoint's interval done again."""
    faults_per_s = gpus / (given["faults.gpu_days_per_fault"] * 86400.0)
    each_s = (
        given["faults.recovery_s"] + given["faults.cluster_start_s"] + given["faults.checkpoint_every_s"] / 2
    )
    return min(0.99, faults_per_s * each_s)


def preparation(given: dict[str, float]) -> dict[str, float]:
    """What preprocessing all volumes takes, and what they take stored: core hours, GB, dollars a month."""
    gb = given["data.volumes"] * given["data.stored_bytes_per_volume"] / 1e9
    return {
        "core_hours": given["data.volumes"] * given["data.core_s_per_volume_prepared"] / 3600,
        "stored_gb": gb,
        "dollars_per_month": gb * given["storage.dollars_per_gb_month"],
        "decoded_gb": given["data.volumes"]
        * given["data.voxels_per_volume"]
        * given["data.decoded_bytes_per_voxel"]
        / 1e9,
    }
