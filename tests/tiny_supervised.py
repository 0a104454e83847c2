"""Fine-tuning small enough for tests: volumes in memory, blobs of two classes, bright and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from hssl_dist.config.finetune import SupervisedConfig
from hssl_dist.networks.pretraining import build_segmentation_network
from hssl_dist.records import CaseRecord, Region
from hssl_dist.sampling.supervised import SupervisedLoader
from hssl_dist.segmentation import WAYS, DiceMeans, MeansByWay
from hssl_dist.training.supervised import SupervisedResult, run_supervised
from hssl_dist.training.validation import Validation
from tests.case_records import record
from tests.tiny_network import NETWORK
from tests.tiny_store import CLASSES, SHAPE

CPU = torch.device("cpu")
CONFIG = SupervisedConfig(
    steps=8, batch_size=2, patch_size=(4, 8, 8), learning_rate=1e-2, warmup_steps=2, validate_every=3
)


def blob_record(name: str, labelled: bool = True) -> CaseRecord:
    return record(
        name,
        dataset="blobs",
        labelled=labelled,
        geometry={"shape": SHAPE},
        foreground={"1": ((3, 4, 4),), "2": ((3, 12, 12),)},
    )


@dataclass
class BlobReader:
    """A store's reader; `nan` makes every image unusable."""

    nan: bool = False

    def image(self, record: CaseRecord) -> np.ndarray:
        rng = np.random.default_rng(len(record.id))
        label = self.label(record)
        image = np.where(label == 1, 2.0, np.where(label == 2, -2.0, 0.0)) + 0.1 * rng.normal(size=SHAPE)
        return np.float32(np.full_like(image, np.nan) if self.nan else image)[None]

    def label(self, record: CaseRecord) -> np.ndarray:
        label = np.zeros(SHAPE, np.uint8)
        label[1:5, 2:7, 2:7] = 1
        label[1:5, 9:14, 9:14] = 2
        return label

    def region(self, record: CaseRecord, region: Region) -> np.ndarray:
        return self.image(record)[region.channel][self._box(region)]

    def label_region(self, record: CaseRecord, region: Region) -> np.ndarray:
        return self.label(record)[self._box(region)]

    def fill(self, pairs: Sequence[tuple[CaseRecord, Region]], out: np.ndarray) -> None:
        out[:] = [self.region(record, region) for record, region in pairs]

    def _box(self, region: Region) -> tuple[slice, ...]:
        return tuple(slice(s, s + n) for s, n in zip(region.start, region.shape, strict=True))


@dataclass
class Observed:
    """An observer that keeps what it is told."""

    steps: list[int] = field(default_factory=list)
    metrics: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    warnings: list[tuple[int, str]] = field(default_factory=list)

    def on_step(self, step: int) -> None:
        self.steps.append(step)

    def on_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self.metrics.append((step, dict(metrics)))

    def on_warning(self, step: int, text: str) -> None:
        self.warnings.append((step, text))


def new_network() -> nn.Module:
    torch.manual_seed(0)
    return build_segmentation_network(NETWORK, in_channels=1, classes=3)


def blob_loader(reader: BlobReader, config: SupervisedConfig = CONFIG) -> SupervisedLoader:
    records = [blob_record("a"), blob_record("bb")]
    return SupervisedLoader(records, reader, config.patch_size, config.batch_size, config.foreground, seed=5)


def blob_scores(network: nn.Module) -> MeansByWay:
    cases = [blob_record("ccc")]
    return Validation(cases, BlobReader(), CLASSES, CONFIG.patch_size, 0.5, CPU, WAYS).means(network)


def means_of(score: float) -> MeansByWay:
    return {"never": DiceMeans({1: score}, score)}


WITHOUT_SCORE = means_of(math.nan)


def trained(network: nn.Module, config: SupervisedConfig = CONFIG, **options: object) -> SupervisedResult:
    observer = options.pop("observer", Observed())
    return run_supervised(
        network, blob_loader(BlobReader(), config), config, CLASSES, observer, CPU, **options
    )
