"""What each verb says, as a command, of models, stores and folders that are not there or do not suit it."""

from __future__ import annotations

import shutil

import pytest

from hssl_dist import cli
from tests.tiny_finetuning import Place
from tests.tiny_model import save_tiny_model, write_scan

CLOSED = "http://127.0.0.1:9"
EMPTY = "no model at {root}/empty: there is no model.json; give a model's folder, models:/name@alias, "
ALIAS = "model 'hssl-unet' in the registry at {uri} has no alias 'best': it has versions 1, aliases latest"
VERSION = "model 'hssl-unet' in the registry at {uri} has no version 7: it has versions 1, aliases latest"
DOWN = f"fetching 'models:/hssl-unet@latest' failed at {CLOSED}: Connection refused; check tracking.uri and"
PRETRAINED = "the model is a pretrained one and has no segmentation head; fine-tune it first"
MISFIT = (
    "the model's patch_size (3, 8, 8) is not a multiple of the network's reduction (2, 2, 2); fine-tune it "
    "again with one that is"
)
STORE = "no manifest at {root}/empty/blobs/manifest.jsonl; preprocess the dataset 'blobs' first"
WORDS = {
    "finetune": "--dataset blobs --runs {root}/runs",
    "predict": "--input {root}/scans --output {root}/out",
    "evaluate": "--output {root}/out --runs {root}/runs",
    "export": "--to safetensors --output {root}/out",
}
FOLDERS = "--labels {root}/labels --output {root}/out"
STUDY = '--tasks [{{"dataset":"blobs"}}] --output {root}/out --runs {root}/runs'

OF_MODELS = [
    (verb, f"--model {model} {more} {WORDS[verb]}", status, line)
    for verb in WORDS
    for model, more, status, line in (
        ("{root}/empty", "", 2, EMPTY),
        ("{root}/none", "", 2, EMPTY.replace("empty", "none")),
        ("models:/hssl-unet@best", "", 2, ALIAS),
        ("models:/hssl-unet/7", "", 2, VERSION),
        ("models:/hssl-unet@latest", f"--tracking.uri {CLOSED}", 1, DOWN),
    )
]
OTHERS = [
    ("finetune", "--model models:/hssl-unet@latest --store.url {root}/empty " + WORDS["finetune"], 2, STORE),
    ("predict", "--model models:/hssl-unet@latest " + WORDS["predict"], 1, PRETRAINED),
    ("predict", "--model {root}/odd " + WORDS["predict"], 1, MISFIT),
    (
        "predict", "--model {root}/model --input {root}/empty --output {root}/out", 2,
        "there is no image in {root}/empty; known are .nii.gz, .nii, .nrrd, .mha and folders of DICOM series",
    ),
    (
        "predict", "--model {root}/model --input {root}/none --output {root}/out", 2,
        "there is no {root}/none; give a file or a folder of images as `input`",
    ),
    ("evaluate", "--model models:/hssl-unet@latest " + WORDS["evaluate"], 1, PRETRAINED),
    ("evaluate", "--model {root}/odd " + WORDS["evaluate"], 1, MISFIT),
    ("evaluate", "--model {root}/model --store.url {root}/empty " + WORDS["evaluate"], 2, STORE),
    (
        "evaluate", f"--predictions ours={{root}}/empty {FOLDERS}", 2,
        "predictions 'ours': there is no label map in {root}/empty; is it the right folder?",
    ),
    (
        "evaluate", "--predictions {root}/labels --labels {root}/empty --output {root}/out", 2,
        "labels: there is no label map in {root}/empty; is it the right folder?",
    ),
    (
        "evaluate", f"--predictions ours={{root}}/none {FOLDERS}", 2,
        "predictions 'ours': there is no folder {root}/none",
    ),
    (
        "export", "--model models:/hssl-unet@latest --dataset blobs --store.url {root}/empty "
        + WORDS["export"], 2, STORE,
    ),
    (
        "export", "--model {root}/odd --to nnunet --output {root}/out", 2,
        "patch_size (3, 8, 8) is not a multiple of the network's reduction (2, 2, 2); choose one that is",
    ),
    ("study", "--store.url {root}/empty " + STUDY, 2, STORE),
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A pretrained network in the registry, a fine-tuned one whose patch does not suit it, images, labels."""
    place = Place(tmp_path_factory.mktemp("refusals"))
    (place.folder / "empty").mkdir()
    write_scan(place.folder / "scans/a.nii.gz")
    write_scan(place.folder / "labels/a.nii.gz")
    patients = [case.patient for case in place.manifest.cases if case.labelled]
    split = {"config": {}, "train": patients[1:], "validation": [], "test": patients[:1]}
    save_tiny_model(place.folder / "model", dataset="blobs", split=split, recipe=None)
    save_tiny_model(place.folder / "odd", dataset="blobs", split=split, patch_size=(3, 8, 8))
    return place


@pytest.mark.parametrize(("verb", "words", "status", "line"), OF_MODELS + OTHERS)
def test_it_is_one_clear_line_and_nothing_is_written(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    words: str,
    status: int,
    line: str,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("HSSL_TRACKING__URI", place.tracking.uri)
    monkeypatch.setenv("HSSL_STORE__URL", place.store)
    assert cli.main([verb, *words.format(root=place.folder).split(), "--threads", "1"]) == status
    told = capsys.readouterr()
    (said,) = told.err.splitlines()
    expected = line.format(root=place.folder, uri=place.tracking.uri)
    assert said.startswith(f"hssl {verb}: error: {expected}")
    assert told.out == ""
    for made in ("out", "runs"):
        left = sorted(path.name for path in (place.folder / made).rglob("*") if path.is_file())
        shutil.rmtree(place.folder / made, ignore_errors=True)
        assert left == []
