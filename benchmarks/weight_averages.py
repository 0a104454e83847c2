"""Whether averaged weights validate better than the weights themselves, at few labels.

    python -m benchmarks.weight_averages --config FILE.yaml --store.url hssl/store [--fractions 0.05 0.1]
        [--subsets 2] [--decays 0.9 0.99 0.999] [--json] [--training.steps 600 ...]

Each run trains from scratch once, without averaging; beside it averages of several decays follow the
weights, and each validation scores all of them on the validation patients. So every difference is paired: the
same labels, the same seed, the same steps. Other flags are those of `hssl finetune`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from benchmarks.measuring import load_average, machine
from hssl_dist.config.finetune import FinetuneConfig, LabelsConfig
from hssl_dist.config.loading import load_config
from hssl_dist.jobs.starting import starting_point
from hssl_dist.sampling.splits import label_subset, labelled_cases, split_manifest
from hssl_dist.sampling.supervised import SupervisedLoader
from hssl_dist.segmentation import MeansByWay
from hssl_dist.store import open_reader, read_manifest
from hssl_dist.training.averaging import WeightAverage
from hssl_dist.training.supervised import run_supervised
from hssl_dist.training.validation import Validation

CPU = torch.device("cpu")


@dataclass
class Averages:
    """Follows the weights of `network`, as an observer of its training."""

    network: nn.Module
    averages: Mapping[float, WeightAverage]
    scores: list[dict[str, float]] = field(default_factory=list)
    step: int = 0

    def on_step(self, step: int) -> None:
        """Take in the weights of a step once: a validation comes before its step is told as done."""
        if step > self.step:
            for average in self.averages.values():
                average.update(self.network, step)
        self.step = step

    def on_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing of it is kept."""

    def on_warning(self, step: int, text: str) -> None:
        """There are no checkpoints to warn of."""


def measure(config: FinetuneConfig, fraction: float, seed: int, decays: Sequence[float]) -> dict[str, Any]:
    """Validation Dice at each validation: of the weights (`0`) and of the average of each decay."""
    manifest = read_manifest(config.store.url, config.dataset)
    reader = open_reader(config.store.url, cache=config.cache)
    split = split_manifest(manifest, config.split)
    labels = LabelsConfig(fraction=fraction, seed=seed)
    training = labelled_cases(manifest, label_subset(split.train, labels))
    network = starting_point(config, manifest.header).network
    settings, classes = config.training, manifest.header.classes
    observer = Averages(network, {decay: WeightAverage(network, decay) for decay in decays})

    scored = labelled_cases(manifest, split.validation)
    validation = Validation(scored, reader, classes, settings.patch_size, settings.validation_overlap, CPU)

    def validate(trained: nn.Module) -> MeansByWay:
        observer.on_step(observer.step + 1)
        means = validation.means(trained)
        averaged = {
            str(decay): validation.means(a.network)["never"].overall for decay, a in observer.averages.items()
        }
        observer.scores.append({"0": means["never"].overall, **averaged})
        return means

    loader = SupervisedLoader(
        training, reader, settings.patch_size, settings.batch_size, settings.foreground, config.seed + seed
    )
    run_supervised(network, loader, settings, classes, observer, CPU, validate=validate)
    best = {key: max(scores[key] for scores in observer.scores) for key in observer.scores[0]}
    return {
        "fraction": fraction,
        "subset": seed,
        "cases": len(training),
        "each": observer.scores,
        "best": best,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fractions", type=float, nargs="*", default=[0.05, 0.1])
    parser.add_argument("--subsets", type=int, default=2)
    parser.add_argument("--decays", type=float, nargs="*", default=[0.9, 0.99, 0.999])
    parser.add_argument("--json", action="store_true")
    arguments, words = parser.parse_known_args()
    config = load_config(FinetuneConfig, "benchmark", ["--model", "scratch", *words])
    torch.set_num_threads(config.threads or 1)
    results = []
    for fraction in arguments.fractions:
        for subset in range(arguments.subsets):
            results.append(measure(config, fraction, subset, arguments.decays))
            best = ", ".join(f"{key} {value:.4f}" for key, value in results[-1]["best"].items())
            sys.stderr.write(f"{fraction:g} of the labels, subset {subset}: {best}\n")
    if arguments.json:
        training = config.training.model_dump(mode="json")
        record = {"machine": machine(), "load": load_average(), "training": training, "results": results}
        sys.stdout.write(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
