"""python -m benchmarks.trace [--job pretrain|finetune] [--stage encoder|decoder] [--device cpu|cuda] [--json]

Which kernels a training step spends its time in: some steps of `run_pretraining` or `run_supervised`, as they
are, under torch's profiler, in groups and the longest by name. On a GPU also how much of the time it works.
--trace FILE keeps the whole trace, which Perfetto and chrome://tracing show. Every flag of the job's config
follows, such as `--global_batch 8` or `--training.precision bfloat16`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.callbacks import Silent
from benchmarks.loader_data import write_volumes
from benchmarks.measuring import gpu_machine, machine
from benchmarks.step import TINY
from benchmarks.step_data import Workload, build_workload
from benchmarks.step_ours import drain, kept_memory, only_stage
from benchmarks.tables import table
from hssl_dist.config.finetune import FinetuneConfig
from hssl_dist.config.loading import load_config
from hssl_dist.config.parts import StoreConfig
from hssl_dist.config.pretrain import PretrainConfig
from hssl_dist.jobs.lineage import code_version
from hssl_dist.jobs.starting import starting_point
from hssl_dist.sampling.splits import labelled_cases
from hssl_dist.sampling.supervised import SupervisedLoader
from hssl_dist.training.checkpoint import CheckpointStore
from hssl_dist.training.loop import run_pretraining
from hssl_dist.training.supervised import run_supervised

if TYPE_CHECKING:
    from collections.abc import Sequence

GROUPS = {
    "convolution": r"conv|fprop|dgrad|wgrad|implicit",
    "norm": r"batch_norm|instance_norm|bn_|welford|norm_(fw|bw)",
    "activation": r"relu",
    "pooling": r"pool",
    "resampling": r"grid_sampl|interpolate|upsample",
    "optimiser": r"adam|foreach|multi_tensor",
    "random numbers": r"normal_|random|philox|distribution",
    "matrix products": r"\b(mm|bmm|addmm|matmul)\b|gemm|nvjet|cutlass",
    "copies and layout": r"copy|contiguous|::cat|CatArray|clone|memcpy|memset|nchw|nhwc|fill|zero|stride",
    "communication": r"nccl|gloo|all_?reduce|all_?gather",
}
"""The first whose pattern a kernel's name has, whatever its case, is its group."""
OTHER, OUTSIDE = "other", "outside torch"
_LONGEST = 15


class Done(Exception):  # noqa: N818  (no error)
    """Enough steps were traced."""


@dataclass(frozen=True)
class Kernel:
    """An operator on the CPU or a kernel on the GPU, over all its calls."""

    name: str
    calls: int
    seconds: float


class Tracer(Silent):
    """Callbacks of both loops: some steps warm up, some are traced; then it raises Done."""

    def __init__(self, device: torch.device, warm_up: int, steps: int) -> None:
        activities = [ProfilerActivity.CPU]
        activities += [ProfilerActivity.CUDA] if device.type == "cuda" else []
        self.profiler = profile(activities=activities)
        self.steps, self.wall_s = steps, 0.0
        self._device, self._warm_up = device, warm_up
        self._done, self._start_s = 0, 0.0

    def on_step(self, step: int) -> None:  # noqa: ARG002
        """Begin after the warm-up, end after the traced steps."""
        self._done += 1
        drain(self._device)
        if self._done == self._warm_up:
            self.profiler.start()
            self._start_s = time.perf_counter()
        elif self._done == self._warm_up + self.steps:
            self.wall_s = time.perf_counter() - self._start_s
            self.profiler.stop()
            raise Done


def group_of(name: str) -> str:
    """The group of a kernel's name."""
    for group, pattern in GROUPS.items():
        if re.search(pattern, name, re.IGNORECASE):
            return group
    return OTHER


def kernels(profiler: profile, device: torch.device) -> list[Kernel]:
    """Of the device that works, the longest first; an operator's time is without those that it calls."""
    if device.type == "cuda":
        found: dict[str, list[float]] = {}
        for event in profiler.events() or ():
            if event.device_type == DeviceType.CUDA:
                found.setdefault(event.name, []).append(event.device_time_total / 1e6)
        every = [Kernel(name, len(times), sum(times)) for name, times in found.items()]
    else:
        every = [
            Kernel(event.key, event.count, event.self_cpu_time_total / 1e6)
            for event in profiler.key_averages()
        ]
    return sorted(every, key=lambda kernel: -kernel.seconds)


def summarise(found: Iterable[Kernel], wall_s: float, steps: int) -> dict[str, Any]:
    """Shares of the wall time by group, what is in no kernel as `outside torch`, and the longest kernels."""
    every = list(found)
    groups: dict[str, float] = {}
    for kernel in every:
        group = group_of(kernel.name)
        groups[group] = groups.get(group, 0.0) + kernel.seconds
    busy_s = sum(groups.values())
    shares = {name: seconds / wall_s for name, seconds in sorted(groups.items(), key=lambda item: -item[1])}
    return {
        "step_ms": 1e3 * wall_s / steps,
        "busy": busy_s / wall_s,
        "groups": shares | {OUTSIDE: max(0.0, 1.0 - busy_s / wall_s)},
        "kernels": [
            {
                "name": kernel.name,
                "calls": kernel.calls / steps,
                "ms": 1e3 * kernel.seconds / steps,
                "share": kernel.seconds / wall_s,
            }
            for kernel in every[:_LONGEST]
        ],
    }


# ------------------------------------------------------------------------------------------------------- jobs


def _pretrain(folder: str, options: argparse.Namespace, words: list[str], tracer: Tracer) -> None:
    config = load_config(PretrainConfig, "trace", words)
    config = config.model_copy(update=TINY) if options.quick else config
    workload = build_workload(folder, config)
    config = only_stage(workload.of(config), options.stage)
    store = CheckpointStore(f"{folder}/runs")
    device = torch.device(options.device)
    with kept_memory(config.acceleration, device):
        run_pretraining(config, workload.manifests(), workload.reader(), store, tracer, device)


def _finetune(folder: str, options: argparse.Namespace, words: list[str], tracer: Tracer) -> None:
    config = load_config(FinetuneConfig, "trace", ["--dataset", "one", "--model", "scratch", *words])
    if options.quick:
        training = config.training.model_copy(update={"patch_size": TINY["sampling"].patch_size})
        config = config.model_copy(update={"network": TINY["network"], "training": training})
    settings = config.training
    shape = tuple(2 * side for side in settings.patch_size)
    write_volumes(f"{folder}/store", "one", shape, 4, 0, labelled=True)  # type: ignore[arg-type]
    workload = Workload(folder)
    config = config.model_copy(update={"store": StoreConfig(url=workload.store)})
    manifest = workload.manifests()["one"]
    patients = [record.patient for record in manifest.cases]
    loader = SupervisedLoader(
        labelled_cases(manifest, patients),
        workload.reader(),
        settings.patch_size,
        settings.batch_size,
        settings.foreground,
        config.seed,
        pin_memory=options.device == "cuda",
    )
    network = starting_point(config, manifest.header).network
    device = torch.device(options.device)
    with kept_memory(settings.acceleration, device):
        run_supervised(network, loader, settings, manifest.header.classes, tracer, device)


JOBS: dict[str, Callable[[str, argparse.Namespace, list[str], Tracer], None]] = {
    "pretrain": _pretrain,
    "finetune": _finetune,
}


def measure(options: argparse.Namespace, words: list[str]) -> dict[str, Any]:
    """Trace, and what there is to say of it."""
    device = torch.device(options.device)
    tracer = Tracer(device, options.warm_up, options.steps)
    with tempfile.TemporaryDirectory(prefix="hssl-benchmark-") as folder, suppress(Done):
        JOBS[options.job](folder, options, words, tracer)
    if options.trace:
        tracer.profiler.export_chrome_trace(options.trace)
    found = summarise(kernels(tracer.profiler, device), tracer.wall_s, tracer.steps)
    about = {"job": options.job, "stage": options.stage if options.job == "pretrain" else None}
    return {
        **about,
        "device": options.device,
        "settings": words,
        "quick": options.quick,
        "steps": tracer.steps,
        "threads": torch.get_num_threads(),
        "code": code_version(),
        "machine": machine() if options.device == "cpu" else gpu_machine(),
        **found,
    }


def tables(record: dict[str, Any]) -> str:
    """A trace's summary in Markdown."""
    stage = f", {record['stage']} stage" if record["stage"] else ""
    groups = [[name, f"{share:.1%}"] for name, share in record["groups"].items()]
    longest = [
        [kernel["name"][:80], f"{kernel['calls']:g}", f"{kernel['ms']:.3g}", f"{kernel['share']:.1%}"]
        for kernel in record["kernels"]
    ]
    title = f"{record['job']}{stage}: {record['step_ms']:.4g} ms a step, {record['busy']:.1%} in kernels"
    return "\n".join(
        (
            table(title, ["group", "share"], groups),
            table("Longest kernels", ["kernel", "calls a step", "ms a step", "share"], longest),
        )
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--job", choices=tuple(JOBS), default="pretrain")
    parser.add_argument("--stage", choices=("encoder", "decoder"), default="encoder")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tiny network")
    parser.add_argument("--trace", help="a file for the whole trace, such as trace.json.gz")
    parser.add_argument("--json", action="store_true")
    options, words = parser.parse_known_args(arguments)
    torch.set_num_threads(options.threads)
    record = measure(options, words)
    sys.stdout.write(json.dumps(record, indent=1) + "\n" if options.json else tables(record))


if __name__ == "__main__":
    main()
