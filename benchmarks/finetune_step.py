"""Where the time of a fine-tuning step goes, for the settings of real configs.

    python -m benchmarks.finetune_step --store hssl/store [--config FILE.yaml ...] [--steps 20] [--json]
        [--training.precision bfloat16 ...]

The pieces are those of `training.supervised`, called one after the other on one thread, from scratch weights;
milliseconds of CPU time per step, medians. `read` runs in the background in training; `waste` is what is
neither the network's forward nor its backward pass, as a share of the whole. Other flags are those of
`hssl finetune`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import load_average, machine
from hssl_dist.augment.supervised import augment_labelled
from hssl_dist.config.finetune import FinetuneConfig
from hssl_dist.config.loading import load_config
from hssl_dist.jobs.starting import starting_point
from hssl_dist.losses.segmentation import dice_cross_entropy
from hssl_dist.sampling.splits import label_subset, labelled_cases, split_manifest
from hssl_dist.sampling.supervised import SupervisedLoader
from hssl_dist.store import open_reader, read_manifest
from hssl_dist.training.optimiser import Optimiser
from hssl_dist.training.precision import autocast, resolved

CONFIGS = ("configs/finetune/real-hippocampus.yaml", "configs/finetune/real-acdc.yaml")
PIECES = ("read", "augment", "forward", "loss", "loss backward", "backward", "clip", "optimiser")
NETWORK = {"forward", "backward"}
WARM_UP_STEPS = 3


class Clock:
    """Milliseconds of each piece, one entry per step."""

    def __init__(self) -> None:
        self.times_ms: dict[str, list[float]] = {piece: [] for piece in PIECES}

    @contextmanager
    def piece(self, name: str) -> Iterator[None]:
        start_s = time.process_time()
        yield
        self.times_ms[name].append((time.process_time() - start_s) * 1e3)

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(times[WARM_UP_STEPS:]) for name, times in self.times_ms.items()}


def profile(path: str, store: str, steps: int, extra: Sequence[str] = ()) -> dict[str, Any]:
    """The medians of one config's pieces, and the share that is not the network."""
    words = ["--config", path, "--store.url", store, "--model", "scratch", *extra]
    config = load_config(FinetuneConfig, "benchmark", words)
    settings = config.training
    manifest = read_manifest(store, config.dataset)
    patients = label_subset(split_manifest(manifest, config.split).train, config.labels)
    network = starting_point(config, manifest.header).network.train()
    optimiser = Optimiser(network, weight_decay=settings.weight_decay)
    reader = open_reader(store, cache=config.cache)
    loader = SupervisedLoader(
        labelled_cases(manifest, patients),
        reader,
        settings.patch_size,
        settings.batch_size,
        settings.foreground,
        config.seed,
    )
    clock = Clock()
    for step in range(WARM_UP_STEPS + steps):
        _step(step, loader, network, optimiser, config, clock)
    medians = clock.medians()
    whole = sum(medians.values())
    network_ms = sum(medians[name] for name in NETWORK)
    return {
        "config": path,
        "precision": resolved(settings.precision, torch.device("cpu")),
        "milliseconds": {name: round(value, 2) for name, value in medians.items()},
        "step": round(whole, 1),
        "waste": round(1.0 - network_ms / whole, 4),
    }


def _step(
    step: int,
    loader: SupervisedLoader,
    network: torch.nn.Module,
    optimiser: Optimiser,
    config: FinetuneConfig,
    clock: Clock,
) -> None:
    settings = config.training
    with clock.piece("read"):
        (batch,) = loader.batches(step, step + 1)
    with clock.piece("augment"):
        image, label = augment_labelled(batch.image, batch.label, batch.seeds, settings.augmentation)
    optimiser.zero_grad()
    with clock.piece("forward"), autocast(settings.precision, torch.device("cpu")):
        outputs = network(image)
    scales = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    leaves = [scale.detach().requires_grad_() for scale in scales]
    with clock.piece("loss"):
        loss = dice_cross_entropy(leaves, label)
    with clock.piece("loss backward"):
        gradients = torch.autograd.grad(loss, leaves)
    with clock.piece("backward"):
        torch.autograd.backward(scales, gradients)
    with clock.piece("clip"):
        optimiser.clip(settings.clip_norm).item()
    with clock.piece("optimiser"):
        optimiser.step(settings.learning_rate)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", required=True)
    parser.add_argument("--config", nargs="*", default=list(CONFIGS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments, extra = parser.parse_known_args()
    torch.set_num_threads(1)
    results = [profile(path, arguments.store, arguments.steps, extra) for path in arguments.config]
    if arguments.json:
        record = {"machine": machine(), "load": load_average(), "results": results}
        sys.stdout.write(json.dumps(record, indent=2) + "\n")
        return
    for result in results:
        sys.stdout.write(f"{Path(result['config']).stem}: {result['step']} ms, waste {result['waste']:.1%}\n")
        for name, value in result["milliseconds"].items():
            sys.stdout.write(f"  {name:14} {value:8.2f} ms\n")


if __name__ == "__main__":
    main()
