"""Fine-tuning runs that are stopped, killed, run again; aliases; the way back from a score to its sources."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hssl_dist.config.finetune import FinetuneConfig
from hssl_dist.config.parts import TrackingConfig
from hssl_dist.console import Console
from hssl_dist.errors import ConfigError, Interrupted, MissingError
from hssl_dist.jobs import finetune
from hssl_dist.jobs.starting import part_rates
from hssl_dist.networks.transfer import STEM_WEIGHT
from hssl_dist.networks.weights import load_model, save_model
from hssl_dist.store import read_manifest
from hssl_dist.tracking import fetch_model, start_run, sync, waits
from hssl_dist.tracking.client import connect
from hssl_dist.training.checkpoint import CheckpointStore
from tests.s3.ports import free_port
from tests.tiny_finetuning import LINEAGE, Place

TRAINING = {"patch_size": (4, 8, 8), "validate_every": 2, "log_every_steps": 2}
DEADLINE_S = 120.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("again"))


class StoppingConsole(Console):
    """Asks the process to stop once its progress has gone so many steps."""

    def __init__(self, after_steps: int) -> None:
        super().__init__(io.StringIO())
        self._left = after_steps

    @contextmanager
    def track(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        def advance(steps: int) -> None:
            self._left -= steps
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGTERM)

        yield advance


def _weights(path: str) -> dict[str, torch.Tensor]:
    return load_model(Path(path))[1]


def _same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


# ------------------------------------------------------------------------------------------------ run again


def test_a_finished_run_gives_its_result_again_and_registers_nothing(place: Place) -> None:
    first = place.finetune("done", register_as="done", split={"test": 0.25, "validation": 0.0})
    again = place.finetune("done", register_as="done", split={"test": 0.25, "validation": 0.0})
    assert again.summary == {**first.summary, "already_done": True}
    assert again.lines == ("run 'done' is done already: models:/done/1",)
    assert again.warnings == first.warnings != ()
    client = connect(place.tracking)
    assert len(client.search_model_versions("name = 'done'")) == 1
    assert len(client.search_runs(["1"], "tags.`hssl.run` = 'done'")) == 1
    assert not (place.folder / "runs/done/checkpoints").exists()


def test_another_config_under_the_same_name_is_refused_in_one_line(place: Place) -> None:
    place.finetune("taken", register_as="taken")
    with pytest.raises(ConfigError) as caught:
        place.finetune("taken", register_as="taken", seed=3)
    assert str(caught.value) == (
        "run 'taken' was started with seed = 0, it is now 3; "
        "give another --name, or the values it was started with"
    )
    elsewhere = {"checkpoint": {"every_steps": 7}, "register_as": "other", "alias": ("other",), "threads": 2}
    assert place.finetune("taken", **elsewhere).summary["already_done"]


def test_a_finished_run_gets_the_name_and_the_aliases_that_it_is_asked_for_later(place: Place) -> None:
    first = place.finetune("later", register_as="later")
    aliased = place.finetune("later", alias=("champion", "later-5"))
    assert aliased.lines == ("run 'later' is done already: models:/later/1, now also champion, later-5",)
    assert aliased.summary == {
        **first.summary,
        "aliases": ["champion", "later-5"],
        "already_done": True,
    }
    assert fetch_model(place.tracking, "models:/later@champion").version == 1
    again = place.finetune("later", alias=("champion",))
    assert (again.lines, again.warnings) == (("run 'later' is done already: models:/later/1",), ())

    place.finetune("better", register_as="later", alias=("champion",), seed=1)
    moved = place.finetune("later", alias=("champion",))
    assert moved.warnings == (
        "alias 'champion' has moved on from models:/later/1 and is left where it is; "
        "`hssl promote --model later --version 1 --alias champion` takes it back",
    )
    assert fetch_model(place.tracking, "models:/later@champion").version == 2

    renamed = place.finetune("later", register_as="renamed", alias=("champion",))
    assert renamed.summary["model"] == "models:/renamed/1"
    assert fetch_model(place.tracking, "models:/renamed@champion").run_id == first.summary["run_id"]


def test_a_finished_run_is_registered_anew_where_the_registry_was_lost(tmp_path: Path) -> None:
    place = Place(tmp_path)
    first = place.finetune("lost", register_as="lost", alias=("champion",)).summary
    weights = _weights(first["path"])
    place.tracking = TrackingConfig(uri=f"sqlite:///{tmp_path}/new/mlflow.db")
    for _ in range(2):  # what was version 1 is now 2: the same model still
        with start_run(place.tracking, "pretrain", {}, {}, LINEAGE) as run:
            run.register(str(place.folder / "pretrained"), "hssl-unet", LINEAGE)

    again = place.finetune("lost", register_as="lost", alias=("champion",))
    assert again.lines == ("run 'lost' is done already: models:/lost/1, registered anew",)
    assert again.summary["run_id"] != first["run_id"]
    assert {**again.summary, "run_id": first["run_id"]} == {**first, "already_done": True}
    fetched = fetch_model(place.tracking, "models:/lost@champion")
    assert fetched.run_id == again.summary["run_id"]
    assert _same(load_model(fetched.folder)[1], weights)
    version = connect(place.tracking).get_model_version("lost", "1")
    assert version.tags["hssl.parent_model"] == "models:/hssl-unet/2"
    (tracked,) = connect(place.tracking).search_runs(["1"], "tags.`hssl.run` = 'lost'")
    assert tracked.info.status == "FINISHED"
    third = place.finetune("lost", register_as="lost", alias=("champion",))
    assert third.lines == ("run 'lost' is done already: models:/lost/1",)

    connect(place.tracking).delete_model_version("lost", "1")
    (tmp_path / "runs/lost/model/model.json").unlink()
    with pytest.raises(MissingError, match=r"the model is no longer at .*/runs/lost/model, from where it"):
        place.finetune("lost", register_as="lost")


def test_a_finished_run_waits_for_a_server_that_is_down(tmp_path: Path) -> None:
    place = Place(tmp_path)
    scratch: dict[str, Any] = {"model": "scratch", "register_as": "down"}
    first = place.finetune("down", **scratch).summary
    up, place.tracking = place.tracking, TrackingConfig(uri=f"http://127.0.0.1:{free_port()}")
    asked = place.finetune("down", **scratch)
    assert asked.lines == ("run 'down' is done already: models:/down/1",)
    assert asked.warnings[0].startswith("whether the registry still has models:/down/1 was not asked: the se")
    wanting = place.finetune("down", **scratch, alias=("champion",))
    assert wanting.summary["already_done"]
    assert wanting.warnings[0].startswith("what MLflow was not told waits on: the server at")
    assert waits(str(tmp_path / "runs/down"))
    sync(up, str(tmp_path / "runs/down"), any_server=True)
    assert fetch_model(up, "models:/down@champion").uri == first["model"]


def test_a_model_that_has_moved_on_is_another_run(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.finetune("moved")
    card, state = load_model(tmp_path / "pretrained")
    other = tmp_path / "other"
    other.mkdir()
    save_model(other, {**state, STEM_WEIGHT: state[STEM_WEIGHT] + 1}, card)
    with start_run(place.tracking, "pretrain", {}, {}, LINEAGE) as run:
        run.register(str(other), "hssl-unet", LINEAGE)
    with pytest.raises(
        ConfigError, match="with model = models:/hssl-unet/1, it is now models:/hssl-unet/2 and 1 more; give"
    ):
        place.finetune("moved")
    assert place.finetune("moved", model="models:/hssl-unet/1").summary["already_done"]


def test_a_stopped_run_goes_on_in_the_same_tracked_run_to_the_same_weights(place: Place) -> None:
    training = {**TRAINING, "steps": 6, "ema_decay": 0.5}
    whole = place.finetune("whole", register_as="whole", training=training).summary
    config = place.config("stopped", register_as="stopped", training=training)
    with pytest.raises(Interrupted, match="stopped after step 3; run it again to go on"):
        finetune.run(config, StoppingConsole(3))
    client = connect(place.tracking)
    (run,) = client.search_runs(["1"], "tags.`hssl.run` = 'stopped'")
    assert run.info.status == "KILLED"
    assert CheckpointStore(str(place.folder / "runs/stopped/checkpoints")).steps() == [3]

    with pytest.raises(
        ConfigError, match=r"run 'stopped' was started with training\.steps = 6, it is now 7; give"
    ):
        place.finetune("stopped", register_as="stopped", training={**training, "steps": 7})
    assert len(client.search_runs(["1"], "tags.`hssl.run` = 'stopped'")) == 1
    told = io.StringIO()
    summary = finetune.run(config, Console(told)).summary
    assert "going on from the checkpoint of step 3" in told.getvalue()
    assert summary["run_id"] == run.info.run_id
    assert (summary["best_step"], summary["val_dice"]) == (whole["best_step"], whole["val_dice"])
    assert _same(_weights(summary["path"]), _weights(whole["path"]))
    losses = [
        [(m.step, m.value) for m in client.get_metric_history(run_id, "loss")]
        for run_id in (whole["run_id"], run.info.run_id)
    ]
    assert losses[0] == losses[1]


def test_a_killed_process_leaves_a_run_that_goes_on_to_the_same_weights(place: Place, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "register_as": "killed",
        "training": {**TRAINING, "steps": 80, "validate_every": 40},
        "checkpoint": {"every_steps": 5},
    }
    whole = place.finetune("unharmed", **changes).summary
    config = place.config("killed", **changes)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "hssl_dist.finetune", "--config", str(tmp_path / "config.yaml")]
    checkpoints = CheckpointStore(str(place.folder / "runs/killed/checkpoints"))
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        give_up_s = time.monotonic() + DEADLINE_S
        while checkpoints.latest() is None and time.monotonic() < give_up_s and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    assert 5 <= (checkpoints.latest() or 0) < 80
    resumed = place.finetune("killed", **changes).summary
    assert (resumed["steps"], resumed["best_step"]) == (80, whole["best_step"])
    assert _same(_weights(resumed["path"]), _weights(whole["path"]))


# ------------------------------------------------------------------------------------- patients and aliases


def test_the_summary_tells_the_nested_subsets(place: Place) -> None:
    summary = place.finetune("nested", register_as="nested", labels={"fraction": 0.5}).summary
    assert summary["nested_patients"] == {"0.05": 1, "0.1": 1, "0.25": 1, "0.5": 2, "1.0": 4}
    card, _ = load_model(Path(summary["path"]))
    assert card.split is not None
    assert sorted(card.split["label_order"]) == card.split["train"]
    assert sorted(card.split["label_order"][:2]) == card.split["labelled"] == summary["patients"]


def test_a_split_file_counts_by_what_it_says(place: Place, tmp_path: Path) -> None:
    def split(name: str, **lists: list[str]) -> dict[str, str]:
        (tmp_path / name).write_text(json.dumps(lists))
        return {"file": str(tmp_path / name)}

    lists = {"train": ["p0", "p2", "p4", "p6", "p7"], "validation": ["p3"], "test": ["p1", "p5"]}
    outcome = place.finetune("by-file", register_as="by-file", split=split("one.json", **lists))
    card, _ = load_model(Path(outcome.summary["path"]))
    assert card.split is not None
    assert {part: card.split[part] for part in lists} == lists
    moved = place.finetune("by-file", register_as="by-file", split=split("two.json", **lists))
    assert moved.summary["already_done"]
    other = {**lists, "train": lists["train"][1:], "test": ["p0", "p1", "p5"]}
    with pytest.raises(ConfigError, match=r"run 'by-file' was started with split\.file = "):
        place.finetune("by-file", register_as="by-file", split=split("two.json", **other))


def test_folds_test_other_patients_and_keep_the_subset_nested(place: Place) -> None:
    folds = [
        place.finetune(f"fold-{i}", register_as="folds", split={"folds": 4, "fold": i, "validation": 0.2})
        for i in range(2)
    ]
    cards = [load_model(Path(fold.summary["path"]))[0].split or {} for fold in folds]
    assert not set(cards[0]["test"]) & set(cards[1]["test"])
    assert [len(card["test"]) for card in cards] == [2, 2]


def test_the_new_version_takes_its_aliases(place: Place) -> None:
    first = place.finetune("alias-1", register_as="named", alias=("champion", "scratch-5"), model="scratch")
    second = place.finetune("alias-2", register_as="named", alias=("champion",), seed=1)
    assert first.summary["aliases"] == ["champion", "scratch-5"]
    assert fetch_model(place.tracking, "models:/named@champion").version == second.summary["version"]
    assert fetch_model(place.tracking, "models:/named@scratch-5").version == first.summary["version"]


@pytest.mark.parametrize("alias", ["latest", "Latest", "v3", "V10"])
def test_names_the_registry_keeps_for_itself_are_no_aliases(alias: str) -> None:
    with pytest.raises(
        ValueError, match=f"'{alias}' is the registry's own name for a version; choose another"
    ):
        FinetuneConfig(dataset="blobs", alias=(alias,))


# ----------------------------------------------------------------------------------------- where it is from


def test_from_a_score_back_to_the_sources(place: Place) -> None:
    """Each step uses only what the one before it names: what a person would look up."""
    place.finetune("walk", register_as="walk", alias=("walked",))
    place.evaluate("models:/walk@walked")
    client = connect(place.tracking)

    scores = json.loads((place.folder / "evaluation/scores.json").read_text())
    lineage = scores["lineage"]
    _, name, number = lineage["model"].rsplit("/", 2)
    version = client.get_model_version(name, number)
    assert version.run_id == version.tags["hssl.run_id"] == lineage["run_id"]
    tuning = client.get_run(lineage["run_id"])
    assert tuning.data.tags["hssl.config_hash"] == version.tags["hssl.config_hash"]
    assert tuning.data.params["dataset"] == lineage["dataset"]
    assert version.tags[f"hssl.manifest.{lineage['dataset']}"] == lineage["manifest"]

    _, name, number = version.tags["hssl.parent_model"].rsplit("/", 2)
    parent = client.get_model_version(name, number)
    assert parent.run_id == version.tags["hssl.parent_run"] == place.pretraining_run

    manifest = read_manifest(place.store, lineage["dataset"])
    assert manifest.sha256 == lineage["manifest"]
    records = {record.id: record for record in manifest.cases}
    for case in scores["cases"]:
        assert [len(source.sha256) for source in records[case["case"]].sources] == [64]


def test_a_model_taken_from_its_folder_still_knows_its_run(place: Place) -> None:
    parent = place.finetune("parent", register_as="parent").summary
    child = place.finetune("child", register_as="child", model=parent["path"], parts=("encoder", "decoder"))
    card, _ = load_model(Path(child.summary["path"]))
    assert (card.lineage.parent_run, card.lineage.parent_model) == (parent["run_id"], parent["path"])


# -------------------------------------------------------------------------------------------- part settings


def test_rates_fall_from_the_deepest_stage_to_the_stem() -> None:
    training = FinetuneConfig(dataset="blobs").training.model_copy(
        update={"encoder_rate": 0.5, "decoder_rate": 0.8, "layer_decay": 0.5}
    )
    assert part_rates(training, ("encoder", "decoder"), 3) == {
        "encoder": 0.125,
        "encoder.stages.0": 0.125,
        "encoder.stages.1": 0.25,
        "encoder.stages.2": 0.5,
        "decoder": 0.8,
    }
    assert part_rates(training, ("decoder",), 3) == {"decoder": 0.8}
    plain = FinetuneConfig(dataset="blobs").training
    assert set(part_rates(plain, ("encoder", "decoder", "heads"), 3).values()) == {1.0}
