"""What a fine-tuning finds out about the patients that its model, and those before it, were trained on."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from hssl_dist.config.pretrain import PretrainConfig
from hssl_dist.console import Console
from hssl_dist.errors import ConfigError
from hssl_dist.jobs import finetune, pretrain
from hssl_dist.jobs.study_plan import Plan, pretrain_config
from hssl_dist.networks.weights import ModelCard, load_model, save_model
from hssl_dist.sampling.splits import split_manifest
from hssl_dist.store import read_manifest, write_manifest
from tests import tiny_study
from tests.tiny_finetuning import Place
from tests.tiny_store import write_blobs

SPLIT = {"test": 0.25, "validation": 0.25}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A store with `blobs`, and with the scans of its patients under other names, and without labels, in
    `copies`, where `c0` shows that of `p7`, `c1` that of `p6` and so on.
    """
    place = Place(tmp_path_factory.mktemp("ancestry"))
    blobs, copies = (read_manifest(place.store, "blobs"), write_blobs(place.store, "copies", labelled=False))
    _mark(place.store, blobs, {f"p{n}": f"scan {n}" for n in range(8)})
    renamed = [case.model_copy(update={"patient": case.patient.replace("p", "c")}) for case in copies.cases]
    copies = write_manifest(place.store, copies.header, renamed)
    _mark(place.store, copies, {f"c{n}": f"scan {7 - n}" for n in range(8)})
    return place


def _mark(store: str, manifest: Any, scans: dict[str, str]) -> None:
    cases = [
        case.model_copy(update={"fingerprints": (f"{scans[case.patient]} {'_b' in case.id}",)})
        if case.patient in scans
        else case
        for case in manifest.cases
    ]
    write_manifest(store, manifest.header, cases)


def pretrained(place: Place, name: str, **sampling: Any) -> str:
    """The model of a pretraining that draws as said."""
    values = {
        "name": name,
        "runner": "inline",
        "register_as": name,
        "store": {"url": place.store},
        "runs": str(place.folder / "runs"),
        "tracking": place.tracking,
        **tiny_study.config(place.folder).pretrain.model_dump(),
    }
    values["sampling"] |= sampling
    config = PretrainConfig.model_validate(values)
    return str(pretrain.run(config, Console(io.StringIO())).summary["model"])


def card_at(path: str) -> ModelCard:
    return load_model(Path(path))[0]


def set_aside(place: Place) -> tuple[str, ...]:
    return split_manifest(read_manifest(place.store, "blobs"), place.config("x", split=SPLIT).split).test


# ----------------------------------------------------------------------------------------- images, pretrained


def test_images_of_test_patients_that_were_pretrained_on_are_told_and_stay_in_the_card(place: Place) -> None:
    model = pretrained(place, "sees-all")
    told = io.StringIO()
    config = place.config("leaky", model=model, register_as="leaky", split=SPLIT)
    outcome = finetune.run(config, Console(told))
    assert "2 for testing (2 of them pretrained on, without their labels); from " in told.getvalue()
    assert outcome.warnings == (
        "models:/sees-all/1 was pretrained on images, without labels, of 2 of the 2 test patients, which may "
        "flatter their scores; pretrain with this split as sampling.exclude_test to leave them out",
    )
    assert (outcome.summary["test_pretrained_on"], outcome.summary["test_patients"]) == (2, 2)
    card = card_at(outcome.summary["path"])
    assert card.test_pretrained_on == set_aside(place)
    assert card.pretrained_on is not None
    assert card.pretrained_on.cases["blobs"] == ("p0", "p0_b", *(f"p{n}" for n in range(1, 8)), "u")
    assert finetune.run(config, Console(io.StringIO())).warnings == outcome.warnings
    nobody = place.finetune("nobody", model=model, register_as="leaky", split={"test": 0.0})
    assert nobody.warnings == ()
    # A model fine-tuned from there has the same behind it.
    child = place.finetune("child", model=outcome.summary["path"], register_as="leaky", split=SPLIT)
    assert child.summary["test_pretrained_on"] == 2


def test_a_scan_under_another_name_is_found_unless_its_patient_was_left_out(place: Place) -> None:
    """`blobs` itself is never drawn from."""
    only = {"datasets": ("copies",)}
    sees = pretrained(place, "sees-copies", **only, exclude_test=SPLIT, exclude_test_of=())
    outcome = place.finetune("copies", model=sees, register_as="copies", split=SPLIT)
    assert card_at(outcome.summary["path"]).test_pretrained_on == set_aside(place)
    assert len(outcome.warnings) == 1

    blind = pretrained(place, "leaves-out", **only, exclude_test=SPLIT)
    card = card_at(str(place.folder / "runs/leaves-out/model"))
    assert card.pretrained_on is not None
    blobs, manifest = (read_manifest(place.store, name) for name in ("blobs", "copies"))
    scans = {case.fingerprints for case in blobs.cases if case.patient in set_aside(place)}
    expected = sorted(case.id for case in manifest.cases if case.fingerprints not in scans)
    assert card.pretrained_on.cases == {"copies": tuple(expected)}
    assert len(expected) < len(manifest.cases)
    assert card.lineage.manifests.keys() >= {"copies", "blobs"}
    assert card.pretrained_on.exclude_test is not None
    assert card.pretrained_on.exclude_test["test"] == 0.25
    outcome = place.finetune("left-out", model=blind, register_as="copies", split=SPLIT)
    assert (outcome.summary["test_pretrained_on"], outcome.warnings) == (0, ())
    # Another split has other test patients: some of them were seen.
    other = place.finetune("other", model=blind, register_as="copies", split={**SPLIT, "seed": 2})
    assert other.summary["test_pretrained_on"] > 0


def test_a_study_leaves_out_test_patients_of_a_task_that_it_does_not_draw_from(place: Place) -> None:
    base = tiny_study.config(place.folder).pretrain
    only = base.sampling.model_copy(update={"datasets": ("copies",)})
    study = tiny_study.config(
        place.folder,
        tasks=tiny_study.BLOBS_ALONE,
        split=SPLIT,
        pretrain=base.model_copy(update={"sampling": only}),
    )
    (planned,) = Plan.of(study).pretrainings
    summary = pretrain.run(planned.config, Console(io.StringIO())).summary
    found = place.finetune("cell", model=summary["model"], register_as="cells", split=SPLIT).summary
    assert found["test_pretrained_on"] == 0
    assert pretrain_config(study, study.arms[1], study.tasks[0], 0) == planned.config


def test_a_run_is_another_one_if_a_dataset_that_it_leaves_patients_out_for_has_changed(
    tmp_path: Path,
) -> None:
    place = Place(tmp_path)
    write_blobs(place.store, "copies")
    only = {"datasets": ("copies",), "exclude_test": SPLIT}
    pretrained(place, "by-both", **only)
    pretrained(place, "by-itself", **only, exclude_test_of=())
    manifest = read_manifest(place.store, "blobs")
    write_manifest(place.store, manifest.header, manifest.cases[1:])
    with pytest.raises(
        ConfigError, match=r"run 'by-both' was started with manifests\.blobs = .*; give another"
    ):
        pretrained(place, "by-both", **only)
    assert pretrained(place, "by-itself", **only, exclude_test_of=()) == "models:/by-itself/1"


def test_a_split_file_leaves_out_patients_of_the_datasets_it_names(tmp_path: Path) -> None:
    place = Place(tmp_path)
    write_blobs(place.store, "copies")
    patients = [f"p{n}" for n in range(8)]
    one = {"train": patients[2:], "test": patients[:2]}
    for name, content, seen in (
        ("plain", one, {"copies"}),
        ("named", {"copies": one, "blobs": one, "elsewhere": one}, {"copies", "blobs"}),
    ):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        pretrained(place, name, datasets=("copies",), exclude_test={"file": str(path)})
        card = card_at(str(tmp_path / f"runs/{name}/model"))
        assert card.lineage.manifests.keys() == seen
        assert card.pretrained_on is not None
        assert card.pretrained_on.cases["copies"] == (*patients[2:], "u")


# ----------------------------------------------------------------------------------------- labels, fine-tuned


def test_a_model_that_was_trained_on_labels_of_those_set_aside_is_refused(place: Place) -> None:
    parent = place.finetune("parent", model="scratch", register_as="parent", split=SPLIT).summary
    own = split_manifest(read_manifest(place.store, "blobs"), place.config("x", split=SPLIT).split)
    other = place.config("x", split={**SPLIT, "seed": 2}).split
    now = split_manifest(read_manifest(place.store, "blobs"), other)
    aside = {*now.validation, *now.test}
    seen = len(set(own.train) & aside)
    assert 0 < seen < len(aside)
    with pytest.raises(ConfigError) as caught:
        place.finetune("refused", model=parent["path"], split=other)
    assert str(caught.value) == (
        f"{parent['path']} was trained on the labels of {seen} of the {len(aside)} validation and test "
        "patients of dataset 'blobs'; use its split (--split.test 0.25 --split.validation 0.25), or start "
        "from another model"
    )
    child = place.finetune("child-of", model=parent["path"], register_as="parent", split=SPLIT).summary
    assert card_at(child["path"]).labels_used == {"blobs": own.train}
    assert place.finetune(
        "all", model=parent["path"], register_as="parent", split={"test": 0, "validation": 0}
    )


def test_labels_that_models_further_back_were_trained_on_count_too(place: Place) -> None:
    """Of a parent on few labels, or on another dataset, that began from one on many."""
    write_blobs(place.store, "elsewhere")
    many = place.finetune("many", model="scratch", register_as="back", split=SPLIT).summary
    few = place.finetune(
        "few", model=many["path"], register_as="back", split=SPLIT, labels={"fraction": 0.05}
    ).summary
    away = place.finetune("away", model=many["path"], register_as="back", dataset="elsewhere").summary
    other = {**SPLIT, "seed": 2}
    for model, remedy in ((few, r"use its split \(.*\)"), (away, "set other patients aside")):
        with pytest.raises(
            ConfigError, match=f"labels of . of the 4 .*; {remedy}, or start from another model"
        ):
            place.finetune("refused", model=model["path"], split=other)
    assert set(card_at(away["path"]).labels_used or {}) == {"blobs", "elsewhere"}


def test_a_card_of_before_says_nothing_of_images_and_its_own_labels_alone(
    place: Place, tmp_path: Path
) -> None:
    old = place.finetune("old", model="models:/hssl-unet/1", register_as="old", split=SPLIT)
    assert (old.summary["test_pretrained_on"], old.warnings) == (None, ())
    path = old.summary["path"]
    card, state = load_model(Path(path))
    assert (card.pretrained_on, card.test_pretrained_on) == (None, None)
    save_model(tmp_path, state, card.model_copy(update={"labels_used": None}))
    with pytest.raises(ConfigError, match="was trained on the labels of"):
        place.finetune("refused", model=str(tmp_path), split={**SPLIT, "seed": 2})
    done = place.finetune("from-old", model=str(tmp_path), register_as="old", split=SPLIT)
    assert (done.summary["test_pretrained_on"], done.warnings) == (None, ())


def test_from_scratch_nobody_has_been_seen(place: Place) -> None:
    summary = place.finetune("scratch", model="scratch", register_as="scratch", split=SPLIT).summary
    assert summary["test_pretrained_on"] == 0
    card = card_at(summary["path"])
    assert card.labels_used == {"blobs": tuple(summary["patients"])}
