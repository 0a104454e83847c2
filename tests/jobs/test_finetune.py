"""Fine-tuning, evaluating and promoting through a real store and a real registry."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import torch

from hssl_dist.config.finetune import PromoteConfig
from hssl_dist.config.parts import TrackingConfig
from hssl_dist.console import Console
from hssl_dist.errors import (
    CheckpointError,
    ConfigError,
    MissingError,
    TrackingError,
)
from hssl_dist.jobs import finetune, promote
from hssl_dist.jobs.publish import publish
from hssl_dist.networks.transfer import STEM_WEIGHT
from hssl_dist.networks.weights import load_model, save_model
from hssl_dist.sampling.splits import split_manifest
from hssl_dist.segmentation import WAYS
from hssl_dist.store import write_manifest
from hssl_dist.tracking import attach_run, fetch_model
from hssl_dist.tracking.client import connect
from hssl_dist.training.precision import resolved
from tests.tiny_finetuning import TRAINING, Place
from tests.tiny_network import NETWORK
from tests.tiny_store import CLASSES, write_blobs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("finetune"))


def test_from_the_registry_the_network_is_transferred_and_its_origin_kept(place: Place) -> None:
    outcome = place.finetune("from-registry")
    summary = outcome.summary
    assert summary["model"] == "models:/hssl-blobs/1"
    assert summary["start"] == "models:/hssl-unet/1"
    taken = [name for name in place.pretrained if name.startswith(("encoder.", "decoder."))]
    assert summary["transfer"].startswith(f"{len(taken)} parameters loaded (0 inflated), 2 new")

    fetched = fetch_model(place.tracking, summary["model"])
    card, state = load_model(fetched.folder)
    assert fetched.run_id == summary["run_id"]
    assert card.lineage.parent_model == "models:/hssl-unet/1"
    assert card.lineage.parent_run == place.pretraining_run
    assert card.lineage.manifests == {"blobs": place.manifest.sha256}
    assert (card.kind, card.dataset, card.in_channels, card.classes) == ("segmentation", "blobs", 1, CLASSES)
    assert card.metrics["val_dice"] == summary["val_dice_mean"]
    assert {name for name in state if name.startswith("heads.")} == {"heads.0.bias", "heads.0.weight"}

    tags = connect(place.tracking).get_model_version("hssl-blobs", "1").tags
    assert tags["hssl.parent_model"] == "models:/hssl-unet/1"
    assert tags["hssl.manifest.blobs"] == place.manifest.sha256
    assert tags["hssl.config_hash"] == card.lineage.config_hash


def test_the_card_divides_the_patients_as_the_config_says(place: Place) -> None:
    outcome = place.finetune("patients", model="scratch", register_as="patients", labels={"fraction": 0.5})
    card, _ = load_model(Path(outcome.summary["path"]))
    split = split_manifest(place.manifest, place.config("patients").split)
    assert card.split is not None
    assert card.split["train"] == list(split.train)
    assert card.split["validation"] == list(split.validation)
    assert card.split["test"] == list(split.test)
    assert card.split["labelled"] == outcome.summary["patients"]
    assert set(outcome.summary["patients"]) < set(split.train)
    assert len(outcome.summary["patients"]) == 2
    assert "u" not in (*split.train, *split.validation, *split.test)
    more = place.finetune("more-patients", model="scratch", register_as="patients")
    assert set(outcome.summary["patients"]) < set(more.summary["patients"])


def test_the_run_has_params_metrics_figures_and_the_config(place: Place) -> None:
    outcome = place.finetune("logged", register_as="logged")
    client = connect(place.tracking)
    run = client.get_run(outcome.summary["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["training.steps"] == "4"
    assert run.data.params["model"] == "models:/hssl-unet@latest"
    assert not [key for key in run.data.params if key.startswith(("tracking", "store", "runs"))]
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [2, 4]
    assert [m.step for m in client.get_metric_history(run.info.run_id, "val_dice")] == [2, 4]
    assert run.data.metrics["best_val_dice"] == pytest.approx(outcome.summary["val_dice_mean"])
    artifacts = place.folder / "mlartifacts" / run.info.run_id / "artifacts"
    assert sorted(str(p.relative_to(artifacts)) for p in artifacts.rglob("*") if p.is_file()) == [
        "config.json",
        "figures/loss.png",
        "figures/val_dice.png",
        "keep_largest.json",
        "patients.json",
        "transfer.json",
    ]
    report = json.loads((artifacts / "transfer.json").read_text())
    assert set(report) == {"loaded", "inflated", "initialised", "unused", "parts"}
    assert report["parts"] == outcome.summary["transfer_parts"]
    assert report["parts"]["heads"] == {"initialised": 2}


def test_equal_configs_give_equal_weights_another_seed_others(place: Place) -> None:
    def weights(name: str, seed: int) -> dict[str, torch.Tensor]:
        outcome = place.finetune(name, model="scratch", register_as="seeds", seed=seed)
        return load_model(Path(outcome.summary["path"]))[1]

    first, again, other = weights("first", 0), weights("again", 0), weights("other", 1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_stem_of_one_channel_serves_two(place: Place) -> None:
    write_blobs(place.store, "two-channels", channels=2)
    outcome = place.finetune("channels", dataset="two-channels")
    assert "(1 inflated)" in outcome.summary["transfer"]
    card, state = load_model(Path(outcome.summary["path"]))
    assert card.in_channels == 2
    assert state["encoder.stem.conv.weight"].shape[1] == 2
    with pytest.raises(ConfigError, match="dataset 'blobs' has 1 channels, the model takes 2"):
        place.evaluate(outcome.summary["model"], dataset="blobs")


def test_frozen_parts_stay_as_they_were_pretrained(place: Place) -> None:
    training = place.config("x").training.model_copy(update={"encoder_rate": 0.0, "decoder_rate": 0.0})
    outcome = place.finetune("frozen", register_as="frozen", training=training)
    _, state = load_model(Path(outcome.summary["path"]))
    for name, value in state.items():
        if not name.startswith("heads."):
            assert torch.equal(value, place.pretrained[name]), name


def test_without_validation_patients_it_says_so(place: Place) -> None:
    outcome = place.finetune("blind", register_as="blind", split={"test": 0.25, "validation": 0.0})
    assert outcome.summary["val_dice_mean"] is None
    assert outcome.summary["best_step"] == 4
    assert outcome.warnings == (
        "no validation patient shows a class: the last weights were kept; raise split.validation",
    )


def _for_two_channels(place: Place) -> str:
    card, state = load_model(place.folder / "pretrained")
    (place.folder / "two").mkdir()
    stem = state[STEM_WEIGHT].repeat(1, 2, 1, 1, 1)
    two = card.model_copy(update={"in_channels": 2})
    save_model(place.folder / "two", {**state, STEM_WEIGHT: stem}, two)
    return str(place.folder / "two")


def test_a_network_beside_a_model_is_told_to_be_ignored(place: Place) -> None:
    told = io.StringIO()
    wide = NETWORK.model_copy(update={"widths": (8, 8)})
    finetune.run(place.config("wide", register_as="wide", network=wide), Console(told))
    assert (
        "network.widths is (8, 8), but models:/hssl-unet@latest has (4, 8), which is used: `network` is for "
        "`--model scratch` alone"
    ) in told.getvalue()


def test_what_does_not_fit_is_refused_in_one_line(place: Place) -> None:
    write_blobs(place.store, "unlabelled", labelled=False)
    training = {"steps": 1, "patch_size": (3, 8, 8)}
    expected = [
        (MissingError, "preprocess the dataset 'none' first", {"dataset": "none"}),
        (ConfigError, "dataset 'unlabelled' has no classes to learn", {"dataset": "unlabelled"}),
        (
            ConfigError,
            r"training.patch_size \(3, 8, 8\) is not a multiple of the network's reduction \(2, 2, 2\)",
            {"training": training},
        ),
        (
            MissingError,
            "no model 'absent' in the registry at .*: it has .*hssl-unet",
            {"model": "models:/absent@x"},
        ),
        (MissingError, "no model at .*nowhere: there is no model.json", {"model": "nowhere"}),
        (
            CheckpointError,
            r"two takes images of 2 channels, those of dataset 'blobs' have 1 \(mr\); choose a model fo",
            {"model": _for_two_channels(place)},
        ),
        (ConfigError, "no labelled patient left for training", {"split": {"test": 0.9, "validation": 0.1}}),
    ]
    for kind, message, changes in expected:
        with pytest.raises(kind, match=message):
            place.finetune("refused", **changes)
    found = connect(place.tracking).search_runs(["1"], "tags.`hssl.run` = 'refused'")
    assert found == []


def test_a_model_is_safe_when_the_registry_is_gone(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    card, state = load_model(place.folder / "pretrained")
    url = str(place.folder / "safe")
    gone = TrackingConfig(uri="http://127.0.0.1:9")
    run = attach_run(gone, "0" * 32)
    with pytest.raises(TrackingError, match=f"Connection refused; .*; the model itself is safe at {url}"):
        publish(run, url, state, card, "hssl-unet")
    run.close()
    assert load_model(Path(url))[0] == card


def test_evaluate_scores_the_test_patients_and_no_other(place: Place) -> None:
    trained = place.finetune("scored", register_as="scored").summary
    outcome = place.evaluate(trained["model"])
    card, _ = load_model(Path(trained["path"]))
    assert card.split is not None
    report = json.loads((place.folder / "evaluation/scores.json").read_text())
    table = (place.folder / "evaluation/scores.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(table)))

    expected = [case for case in place.manifest.cases if case.patient in card.split["test"]]
    assert [case["case"] for case in report["cases"]] == [case.id for case in expected]
    assert [(r["set"], r["case"], r["patient"], r["class"], r["value"]) for r in rows] == [
        ("model", case.id, case.patient, name, str(value))
        for case in expected
        for value, name in CLASSES.items()
    ]
    by_row = {(r["case"], r["class"]): float(r["dice"]) if r["dice"] else None for r in rows}
    for case in report["cases"]:
        for name, score in case["dice"].items():
            assert by_row[case["case"], name] == (None if score is None else pytest.approx(score, abs=1e-6))
    for name in CLASSES.values():
        known = [case["dice"][name] for case in report["cases"] if case["dice"][name] is not None]
        mean = report["sets"]["model"]["classes"][name]["dice"]["mean"]
        assert mean["value"] == outcome.summary["dice"][name] == pytest.approx(sum(known) / len(known))
    overall = report["sets"]["model"]["overall"]["dice"]["mean"]["value"]
    assert outcome.summary["dice_mean"] == overall
    origin = report["lineage"]
    assert (origin["model"], origin["manifest"], origin["part"], report["grid"]) == (
        trained["model"],
        place.manifest.sha256,
        "test",
        "stored",
    )
    assert origin["model_lineage"]["manifests"] == {"blobs": place.manifest.sha256}
    page = (place.folder / "evaluation/report.html").read_text()
    assert page.count('src="data:image/png;base64,') == len(expected)
    assert outcome.warnings == ()
    run = connect(place.tracking).get_run(trained["run_id"])
    assert run.data.metrics["test_dice"] == pytest.approx(overall)
    assert {"test_hd95_mm", "test_nsd/bright", "test_volume_error_ml"} <= run.data.metrics.keys()
    assert run.info.status == "FINISHED"
    logged = place.folder / "mlartifacts" / trained["run_id"] / "artifacts/evaluation/test_blobs"
    assert sorted(path.name for path in logged.iterdir()) == ["report.html", "scores.csv", "scores.json"]
    assert (logged / "scores.csv").read_text() == table


def test_evaluate_on_validation_patients_repeats_the_validation(place: Place) -> None:
    trained = place.finetune("validated", register_as="validated").summary
    outcome = place.evaluate(trained["path"], part="validation", overlap=0.5)
    assert outcome.summary["dice_mean"] == pytest.approx(trained["val_dice_mean"])
    assert outcome.summary["dice"] == pytest.approx(trained["val_dice"])
    assert outcome.summary["run_id"] is None


@pytest.mark.parametrize("way", ["auto", *WAYS])
def test_the_card_says_what_is_kept_and_scores_are_of_that(place: Place, way: str) -> None:
    name = f"keep-{way}"
    outcome = place.finetune(name, register_as="keep", training={"keep_largest": way, **TRAINING})
    trained = outcome.summary
    card, _ = load_model(Path(trained["path"]))
    ways = trained["val_dice_by_way"]
    assert set(ways) == (set(WAYS) if way == "auto" else {"never", way})
    assert card.keep_largest == trained["keep_largest"] == (max(ways, key=ways.get) if way == "auto" else way)
    assert trained["val_dice_mean"] == ways[card.keep_largest]
    assert ways["never"] == pytest.approx(max(dice for _, dice in trained["val_dice_curve"]))
    assert ("largest component" in outcome.lines[0]) == (card.keep_largest != "never")
    scored = place.evaluate(trained["path"], part="validation", overlap=0.5).summary
    assert scored["dice_mean"] == pytest.approx(trained["val_dice_mean"])


def test_the_card_names_the_precision_that_was_used(place: Place) -> None:
    trained = place.finetune("precise", register_as="precise", training={"precision": "auto", **TRAINING})
    card, _ = load_model(Path(trained.summary["path"]))
    assert card.extra["precision"] == resolved("auto", torch.device("cpu"))


def test_evaluate_refuses_what_it_cannot_score(place: Place) -> None:
    with pytest.raises(CheckpointError, match="the model is a pretrained one and has no segmentation head"):
        place.evaluate("models:/hssl-unet@latest")
    trained = place.finetune(
        "blind-test", register_as="blind", split={"test": 0.0, "validation": 0.25}
    ).summary
    with pytest.raises(
        ConfigError, match=r"there is no test patient in dataset 'blobs'; .* larger split\.test"
    ):
        place.evaluate(trained["model"])
    write_blobs(place.store, "unlabelled", labelled=False)
    message = r"dataset 'unlabelled' has the classes \{\}, the model \{1: 'bright', 2: 'dark'\}"
    with pytest.raises(ConfigError, match=message):
        place.evaluate(trained["model"], dataset="unlabelled")


def test_evaluate_notices_a_store_that_has_changed(place: Place, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    manifest = write_blobs(store)
    trained = place.finetune("changed", register_as="changed", store={"url": store}).summary
    card, _ = load_model(Path(trained["path"]))
    assert card.split is not None
    without_train = [case for case in manifest.cases if case.patient != card.split["train"][0]]
    write_manifest(store, manifest.header, without_train)
    outcome = place.evaluate(trained["model"], store={"url": store})
    assert outcome.warnings[0].startswith("dataset 'blobs' has changed since the model was trained")
    gone = card.split["test"][0]
    write_manifest(store, manifest.header, [case for case in manifest.cases if case.patient != gone])
    with pytest.raises(
        MissingError, match=f"1 of the 2 test patients are not in dataset 'blobs' .*'{gone}' first"
    ):
        place.evaluate(trained["model"], store={"url": store})


def test_promote_moves_the_champion(place: Place) -> None:
    config = PromoteConfig(model="hssl-unet", tracking=place.tracking)
    outcome = promote.run(config, Console(io.StringIO()))
    assert outcome.summary == {
        "model": "hssl-unet",
        "version": 1,
        "alias": "champion",
        "uri": "models:/hssl-unet@champion",
    }
    assert fetch_model(place.tracking, "models:/hssl-unet@champion").version == 1
    trained = place.finetune("from-champion", model="models:/hssl-unet@champion", register_as="c").summary
    assert trained["start"] == "models:/hssl-unet/1"
