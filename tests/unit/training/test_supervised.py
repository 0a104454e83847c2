"""Fine-tuning on volumes in memory: blobs of two classes, bright and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from hssl_dist.config.finetune import SupervisedConfig
from hssl_dist.errors import ConfigError, NonFiniteError
from hssl_dist.networks.pretraining import build_segmentation_network
from hssl_dist.records import CaseRecord, Region
from hssl_dist.sampling.supervised import SupervisedLoader
from hssl_dist.segmentation import DiceMeans, dice_means
from hssl_dist.training.supervised import SupervisedResult, run_supervised
from hssl_dist.training.validation import score_cases
from tests.case_records import record
from tests.tiny_store import CLASSES, NETWORK, SHAPE

CPU = torch.device("cpu")
CONFIG = SupervisedConfig(
    steps=8, batch_size=2, patch_size=(4, 8, 8), learning_rate=1e-2, warmup_steps=2, validate_every=3
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _record(name: str, labelled: bool = True) -> CaseRecord:
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
    steps: list[int] = field(default_factory=list)
    metrics: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def on_step(self, step: int) -> None:
        self.steps.append(step)

    def on_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self.metrics.append((step, dict(metrics)))


def _network() -> nn.Module:
    torch.manual_seed(0)
    return build_segmentation_network(NETWORK, in_channels=1, classes=3)


def _loader(reader: BlobReader, config: SupervisedConfig = CONFIG) -> SupervisedLoader:
    records = [_record("a"), _record("bb")]
    return SupervisedLoader(records, reader, config.patch_size, config.batch_size, config.foreground, seed=5)


def _validate(network: nn.Module) -> DiceMeans:
    scored = score_cases(network, [_record("ccc")], BlobReader(), CLASSES, CONFIG.patch_size, 0.5, CPU)
    return dice_means(scores for _, scores in scored)


def _train(network: nn.Module, config: SupervisedConfig = CONFIG, **options: object) -> SupervisedResult:
    observer = options.pop("observer", Observed())
    return run_supervised(network, _loader(BlobReader(), config), config, CLASSES, observer, CPU, **options)


def test_it_learns_what_is_there_to_learn() -> None:
    config = CONFIG.model_copy(update={"steps": 100, "validate_every": 50, "learning_rate": 5e-2})
    result = _train(_network(), config, validate=_validate)
    assert result.validation is not None
    assert result.validation.overall > 0.8
    assert set(result.validation.per_class) == {1, 2}


def test_same_seed_same_weights_bit_for_bit() -> None:
    first, second = (_train(_network(), validate=_validate) for _ in range(2))
    assert first.step == second.step
    for name, value in first.state.items():
        assert torch.equal(value, second.state[name]), name


def test_metrics_validations_and_steps_are_reported_when_they_are_due() -> None:
    observer = Observed()
    config = CONFIG.model_copy(update={"log_every_steps": 4})
    result = _train(_network(), config, validate=_validate, observer=observer)
    assert observer.steps == list(range(1, 9))
    assert result.history == observer.metrics
    assert [step for step, metrics in observer.metrics if "loss" in metrics] == [4, 8]
    assert [step for step, metrics in observer.metrics if "val_dice" in metrics] == [3, 6, 8]
    validated = [metrics for _, metrics in observer.metrics if "val_dice" in metrics]
    for metrics in validated:
        assert metrics["val_dice"] == pytest.approx(
            (metrics["val_dice/bright"] + metrics["val_dice/dark"]) / 2
        )
    best = max(metrics["val_dice"] for metrics in validated)
    assert result.validation is not None
    assert result.validation.overall == best


def test_the_weights_that_validated_best_are_kept_the_earliest_of_equals() -> None:
    means = iter((0.2, 0.9, 0.9, math.nan))
    seen: list[dict[str, torch.Tensor]] = []

    def validate(network: nn.Module) -> DiceMeans:
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        mean = next(means)
        return DiceMeans({1: mean, 2: math.nan}, mean)

    network = _network()
    config = CONFIG.model_copy(update={"validate_every": 2})
    result = _train(network, config, validate=validate)
    assert (result.step, result.validation) == (
        4,
        DiceMeans({1: 0.9, 2: pytest.approx(math.nan, nan_ok=True)}, 0.9),
    )
    for name, value in network.state_dict().items():
        assert torch.equal(value, seen[1][name])
        assert torch.equal(value, result.state[name])
    assert any(not torch.equal(seen[1][name], seen[3][name]) for name in seen[1])


@pytest.mark.parametrize("validate", [None, lambda network: DiceMeans({1: math.nan}, math.nan)])
def test_without_a_score_the_last_weights_are_kept(validate: object) -> None:
    result = _train(_network(), validate=validate)
    assert (result.step, result.validation) == (8, None)
    other = _train(_network(), validate=_validate)
    assert set(result.state) == set(other.state)


def test_a_frozen_part_stays_and_a_slow_part_moves_less() -> None:
    start = {name: value.clone() for name, value in _network().state_dict().items()}

    def moved(part: str, **rates: float) -> float:
        state = _train(_network(), rates=rates).state
        return sum(float((state[name] - start[name]).norm()) for name in start if name.startswith(f"{part}."))

    assert moved("encoder", encoder=0.0) == 0.0
    assert moved("decoder", encoder=0.0) > 0.0
    assert moved("heads", encoder=0.0, decoder=0.0) > 0.0
    assert 0.0 < moved("encoder", encoder=0.1) < 0.5 * moved("encoder")


def test_a_loss_that_is_not_finite_stops_before_the_weights_change() -> None:
    network = _network()
    start = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(NonFiniteError, match=r"the loss became nan at step 1; lower training\.learning_rate"):
        run_supervised(network, _loader(BlobReader(nan=True)), CONFIG, CLASSES, Observed(), CPU)
    assert all(torch.equal(value, start[name]) for name, value in network.state_dict().items())


def test_scores_are_those_of_the_prediction_and_need_a_label() -> None:
    class Oracle(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            image = images[:, 0]
            return torch.stack((1.0 - image.abs(), image, image * 0 - 9), dim=1)

    score = partial(score_cases, Oracle(), reader=BlobReader(), classes=CLASSES, patch_size=(4, 8, 8))
    ((scored, scores),) = score([_record("a")], overlap=0.25, device=CPU)
    assert scored.id == "a"
    assert scores == {1: 1.0, 2: 0.0}
    with pytest.raises(ConfigError, match="case 'u' of dataset 'blobs' has no label to score against"):
        list(score([_record("u", labelled=False)], overlap=0.25, device=CPU))
