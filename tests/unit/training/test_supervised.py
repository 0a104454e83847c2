"""Fine-tuning: what is learnt, kept, refused, and which parts learn how fast."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hssl_dist.errors import ConfigError, NonFiniteError
from hssl_dist.networks.pretraining import build_segmentation_network
from hssl_dist.segmentation import WAYS, DiceMeans, MeansByWay, dice, keep_largest, predict
from hssl_dist.training.supervised import run_supervised
from hssl_dist.training.validation import Validation
from tests.tiny_network import NETWORK
from tests.tiny_store import CLASSES
from tests.tiny_supervised import (
    CONFIG,
    CPU,
    WITHOUT_SCORE,
    BlobReader,
    Observed,
    blob_loader,
    blob_record,
    blob_scores,
    means_of,
    new_network,
    trained,
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_it_learns_what_is_there_to_learn() -> None:
    config = CONFIG.model_copy(update={"steps": 100, "validate_every": 50, "learning_rate": 5e-2})
    result = trained(new_network(), config, validate=blob_scores)
    assert result.validation is not None
    assert result.validation["never"].overall > 0.8
    assert set(result.validation["never"].per_class) == {1, 2}


def test_same_seed_same_weights_bit_for_bit() -> None:
    first, second = (trained(new_network(), validate=blob_scores) for _ in range(2))
    assert first.step == second.step
    for name, value in first.state.items():
        assert torch.equal(value, second.state[name]), name


def test_metrics_validations_and_steps_are_reported_when_they_are_due() -> None:
    observer = Observed()
    config = CONFIG.model_copy(update={"log_every_steps": 4})
    result = trained(new_network(), config, validate=blob_scores, observer=observer)
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
    assert result.validation["never"].overall == best


def test_the_weights_that_validated_best_are_kept_the_earliest_of_equals() -> None:
    means = iter((0.2, 0.9, 0.9, math.nan))
    seen: list[dict[str, torch.Tensor]] = []

    def validate(network: nn.Module) -> MeansByWay:
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        mean = next(means)
        return {"never": DiceMeans({1: mean, 2: math.nan}, mean)}

    network = new_network()
    config = CONFIG.model_copy(update={"validate_every": 2})
    result = trained(network, config, validate=validate)
    assert (result.step, result.validation) == (
        4,
        {"never": DiceMeans({1: 0.9, 2: pytest.approx(math.nan, nan_ok=True)}, 0.9)},
    )
    for name, value in network.state_dict().items():
        assert torch.equal(value, seen[1][name])
        assert torch.equal(value, result.state[name])
    assert any(not torch.equal(seen[1][name], seen[3][name]) for name in seen[1])


@pytest.mark.parametrize("validate", [None, lambda network: WITHOUT_SCORE])
def test_without_a_score_the_last_weights_are_kept(validate: object) -> None:
    result = trained(new_network(), validate=validate)
    assert (result.step, result.validation) == (8, None)
    other = trained(new_network(), validate=blob_scores)
    assert set(result.state) == set(other.state)


def test_a_frozen_part_stays_and_a_slow_part_moves_less() -> None:
    start = {name: value.clone() for name, value in new_network().state_dict().items()}

    def moved(part: str, **rates: float) -> float:
        state = trained(new_network(), rates=rates).state
        return sum(float((state[name] - start[name]).norm()) for name in start if name.startswith(f"{part}."))

    assert moved("encoder", encoder=0.0) == 0.0
    assert moved("decoder", encoder=0.0) > 0.0
    assert moved("heads", encoder=0.0, decoder=0.0) > 0.0
    assert 0.0 < moved("encoder", encoder=0.1) < 0.5 * moved("encoder")


def test_a_loss_that_is_not_finite_stops_before_the_weights_change() -> None:
    network = new_network()
    start = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(NonFiniteError, match=r"the loss became nan at step 1; lower training\.learning_rate"):
        run_supervised(network, blob_loader(BlobReader(nan=True)), CONFIG, CLASSES, Observed(), CPU)
    assert all(torch.equal(value, start[name]) for name, value in network.state_dict().items())


def test_patches_that_are_not_finite_are_saved_as_the_loader_gave_them(tmp_path: Path) -> None:
    loader = blob_loader(BlobReader(nan=True))
    with pytest.raises(NonFiniteError) as caught:
        run_supervised(new_network(), loader, CONFIG, CLASSES, Observed(), CPU, run_folder=str(tmp_path))
    folder = tmp_path / "not-finite" / "step-00000000"
    assert str(caught.value).endswith(f"; samples are saved in {folder}")
    batch = next(loader.batches(0, 1))
    assert len(list(folder.iterdir())) == 4
    for index in range(2):
        described = json.loads((folder / f"sample-0000{index}.json").read_text())
        tensors = load_file(folder / f"sample-0000{index}.safetensors")
        record, regions = loader.draw(0, index)
        assert torch.equal(tensors["image"].isnan(), batch.image[index : index + 1].isnan())
        assert tensors["image"].isnan().all()
        assert torch.equal(tensors["label"], batch.label[index : index + 1])
        assert described["record"] == record.model_dump(mode="json")
        assert [tuple(region["start"]) for region in described["regions"]] == [r.start for r in regions]
        assert (described["reason"], described["seed"]) == ("region", batch.seeds[index])
        assert described["values"]["loss"] == "nan"


def test_scores_are_those_of_the_prediction_and_need_a_label() -> None:
    class Oracle(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            image = images[:, 0]
            return torch.stack((1.0 - image.abs(), image, image * 0 - 9), dim=1)

    validation = Validation([blob_record("a")], BlobReader(), CLASSES, (4, 8, 8), 0.25, CPU)
    (scores,) = validation.scores(Oracle())
    assert scores == {"never": {1: 1.0, 2: 0.0}}
    unlabelled = replace(validation, records=[blob_record("u", labelled=False)])
    with pytest.raises(ConfigError, match="case 'u' of dataset 'blobs' has no label to score against"):
        unlabelled.means(Oracle())


def test_every_way_scores_the_same_prediction() -> None:
    network, found = new_network(), blob_record("ccc")
    means = blob_scores(network)
    image, label = BlobReader().image(found), BlobReader().label(found)
    background = [intensity.background for intensity in found.intensities]
    predicted = predict(network, image, CONFIG.patch_size, 0.5, CPU, background)
    expected = {way: dice(keep_largest(predicted, way), label, CLASSES) for way in WAYS}
    assert {way: score.per_class for way, score in means.items()} == expected
    assert len({score.overall for score in means.values()}) > 1


# -------------------------------------------------------------------------------------------- part settings


def test_what_was_taken_from_a_model_is_frozen_for_the_first_steps() -> None:
    start = {name: value.clone() for name, value in new_network().state_dict().items()}
    moved: dict[int, set[str]] = {}

    def look(network: nn.Module) -> MeansByWay:
        state = network.state_dict()
        moved[len(moved) + 1] = {n.partition(".")[0] for n in state if not torch.equal(state[n], start[n])}
        return means_of(0.5)

    config = CONFIG.model_copy(update={"validate_every": 1, "freeze_steps": 3})
    trained(new_network(), config, validate=look, rates={"encoder": 1.0, "decoder": 0.0})
    assert [moved[step] for step in (1, 3)] == [{"heads"}, {"heads"}]
    assert moved[4] == moved[8] == {"heads", "encoder"}


def test_the_longest_beginning_of_a_name_gives_its_rate() -> None:
    start = {name: value.clone() for name, value in new_network().state_dict().items()}
    state = trained(new_network(), rates={"encoder": 0.0, "encoder.stages.1": 1.0}).state
    still = {name for name in state if torch.equal(state[name], start[name])}
    # The stages' last norms start at zero, so the first step leaves what lies behind them as it is.
    assert {name for name in start if name.startswith(("encoder.stem", "encoder.stages.0"))} <= still
    assert not {name for name in still if name.startswith(("encoder.stages.1", "decoder", "heads"))}


def test_without_deep_supervision_only_the_finest_head_learns() -> None:
    torch.manual_seed(0)
    config = NETWORK.model_copy(
        update={
            "widths": (4, 8, 8),
            "strides": (*NETWORK.strides, (1, 2, 2)),
            "kernels": (*NETWORK.kernels, (3, 3, 3)),
            "encoder_blocks": (1, 1, 1),
            "decoder_blocks": (1, 1),
        }
    )
    network = build_segmentation_network(config, in_channels=1, classes=3, deep_supervision=False)
    before = {name: value.clone() for name, value in network.heads.state_dict().items()}
    after = trained(network).state
    assert isinstance(network.train()(torch.zeros(1, 1, 4, 8, 8)), torch.Tensor)
    changed = {name for name, value in before.items() if not torch.equal(value, after[f"heads.{name}"])}
    assert changed == {"1.weight", "1.bias"}


def test_the_average_is_what_is_validated_and_kept() -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def look(network: nn.Module) -> MeansByWay:
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        return means_of(0.1 * len(seen))

    each = CONFIG.model_copy(update={"validate_every": 1})
    trained(new_network(), each, validate=look)
    plain, seen = seen, []
    result = trained(new_network(), each.model_copy(update={"ema_decay": 0.3}), validate=look)
    average = {name: value.clone() for name, value in new_network().state_dict().items()}
    for step, (weights, found) in enumerate(zip(plain, seen, strict=True), 1):
        decay = min(0.3, (1 + step) / (10 + step))
        average = {name: decay * value + (1 - decay) * weights[name] for name, value in average.items()}
        for name, value in found.items():
            torch.testing.assert_close(value, average[name], rtol=1e-5, atol=1e-7)
    assert all(torch.equal(value, seen[-1][name]) for name, value in result.state.items())


def test_lower_precision_learns_with_weights_in_full_precision() -> None:
    config = CONFIG.model_copy(update={"precision": "bfloat16", "steps": 60, "learning_rate": 5e-2})
    result = trained(new_network(), config, validate=blob_scores)
    assert {value.dtype for value in result.state.values()} == {torch.float32}
    assert result.validation is not None
    assert result.validation["never"].overall > 0.7
