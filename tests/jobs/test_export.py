"""`hssl export`, from a real registry to folders that other tools read; nothing half done, nothing lost."""

from __future__ import annotations

import io
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hssl_dist import cli, files
from hssl_dist.config.export import ExportConfig
from hssl_dist.config.parts import TrackingConfig
from hssl_dist.console import Console
from hssl_dist.errors import CheckpointError, ConfigError, MissingError, StorageError
from hssl_dist.jobs import export
from hssl_dist.networks.weights import load_model, save_model
from hssl_dist.records import Outcome
from hssl_dist.store import write_manifest
from hssl_dist.tracking import set_alias, start_run
from tests.case_records import header
from tests.models import CT, LINEAGE, MR, pretrained_model, recipe, segmentation_model
from tests.readme_code import blocks

DOCS = Path(__file__).parents[2] / "docs" / "export.md"


class Place:
    """A folder with a store, a registry with a pretrained network, and a fine-tuned one as a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = str(folder / "store")
        self.tracking = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db")
        two = {"channels": ("ct", "mr"), "classes": {}}
        write_manifest(self.store, header(dataset="blobs", recipe=recipe(CT, MR), **two), ())
        one = header(dataset="one", recipe=recipe(CT), channels=("ct",), classes={1: "liver"})
        write_manifest(self.store, one, ())
        write_manifest(self.store, header(dataset="old", recipe={"version": 1}, **two), ())
        self.pretrained = pretrained_model()
        self.fine_tuned = segmentation_model(patch_size=(4, 8, 8))
        for name, (card, state) in (("pretrained", self.pretrained), ("fine-tuned", self.fine_tuned)):
            save_model(folder / name, state, card)
        with start_run(self.tracking, "pretrain", {}, {}, LINEAGE) as run:
            run.register(str(folder / "pretrained"), "hssl-unet", LINEAGE)
        set_alias(self.tracking, "hssl-unet", None, "champion")

    def export(self, output: Path | str, **changes: Any) -> Outcome:
        values: dict[str, Any] = {
            "model": "models:/hssl-unet@champion",
            "to": "safetensors",
            "output": str(output),
            "store": {"url": self.store},
            "tracking": self.tracking,
            "threads": 1,
        }
        return export.run(ExportConfig.model_validate(values | changes), Console(io.StringIO()))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("export"))


def account_of(output: Path) -> dict[str, Any]:
    account: dict[str, Any] = json.loads((output / "export.json").read_text())
    return account


@pytest.mark.parametrize("target", export.FORMATS)
@pytest.mark.parametrize("kind", ["pretrained", "fine-tuned"])
def test_every_parameter_is_accounted_for(place: Place, tmp_path: Path, target: str, kind: str) -> None:
    model = str(place.folder / kind)
    outcome = place.export(tmp_path / "out", to=target, model=model)
    account = account_of(tmp_path / "out")
    _, state = place.pretrained if kind == "pretrained" else place.fine_tuned
    assert set(account["parameters"]) | set(account["left_out"]) == set(state)
    assert not set(account["parameters"]) & set(account["left_out"])
    for name, entry in account["parameters"].items():
        assert entry["as"]
        assert entry["shape"] == list(state[name].shape)
    assert all(account["left_out"].values())
    assert (kind == "pretrained") == bool(account["left_out"])
    found = account["verification"]
    assert found["verified"] is outcome.summary["verified"] is True
    assert 0.0 <= found["max_difference"] <= found["tolerance"]
    assert account["model"] == model
    assert account["lineage"] == LINEAGE.model_dump(mode="json")
    written = {
        p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()
    }
    assert set(account["files"]) | {"export.json"} == written
    for name, entry in account["files"].items():
        assert files.sha256(str(tmp_path / "out" / name)) == (entry["sha256"], entry["size_bytes"])


def test_the_registrys_model_is_named_exactly(place: Place, tmp_path: Path) -> None:
    outcome = place.export(tmp_path / "out")
    assert outcome.summary["model"] == account_of(tmp_path / "out")["model"] == "models:/hssl-unet/1"
    assert outcome.lines[0].startswith("models:/hssl-unet/1 as safetensors: ")
    card, weights = load_model(tmp_path / "out")
    assert card.kind == "pretrained"
    assert {name.partition(".")[0] for name in weights} == {"encoder", "decoder"}
    again = place.export(tmp_path / "again", model=str(tmp_path / "out"))
    assert again.summary["left_out"] == 0, "what was exported is a model"


def test_a_dataset_says_spacing_channels_and_normalisation(place: Place, tmp_path: Path) -> None:
    outcome = place.export(tmp_path / "out", to="nnunet", dataset="blobs")
    found = json.loads((tmp_path / "out" / "plans.json").read_text())["configurations"]["3d_fullres"]
    assert found["spacing"] == [2.0, 1.0, 1.0]
    assert found["normalization_schemes"] == ["CTNormalization", "ZScoreNormalization"]
    assert outcome.summary["assumed"] == ["patch_size"]
    assert account_of(tmp_path / "out")["channels"] == 2


def test_a_one_channel_network_is_spread_over_the_plans_channels(place: Place, tmp_path: Path) -> None:
    place.export(tmp_path / "first", to="nnunet", model=str(place.folder / "fine-tuned"))
    plans = json.loads((tmp_path / "first" / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["normalization_schemes"] *= 3
    (tmp_path / "nnUNetPlans.json").write_text(json.dumps(plans))
    outcome = place.export(tmp_path / "out", to="nnunet", plans=str(tmp_path / "nnUNetPlans.json"))
    account = account_of(tmp_path / "out")
    assert outcome.summary["assumed"] == []
    assert account["channels"] == 3
    stem = account["parameters"]["encoder.stem.conv.weight"]
    assert (stem["spread_over_channels"], stem["shape"][1]) == (3, 3)
    assert [name for name, entry in account["parameters"].items() if "spread_over_channels" in entry] == [
        "encoder.stem.conv.weight"
    ]


@pytest.mark.parametrize("target", export.FORMATS)
def test_the_json_line_stands_alone(
    place: Place, tmp_path: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other tools print as they please; standard output is for the result."""
    words = ("--model", str(place.folder / "pretrained"), "--output", str(tmp_path / "out"), "--to", target)
    assert cli.main(["export", *words, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["verb"], summary["to"], summary["verified"]) == ("export", target, True)


def test_what_is_assumed_is_a_warning(place: Place, tmp_path: Path) -> None:
    outcome = place.export(tmp_path / "out", to="nnunet")
    assert outcome.summary["assumed"] == ["normalization_schemes", "patch_size", "spacing"]
    assert len(outcome.warnings) == 3
    assert "spacing is assumed: 1 x 1 x 1 mm: neither the model nor a dataset says it" in outcome.warnings


def test_a_fine_tuned_models_dataset_is_prepared_as_its_images_were(place: Place, tmp_path: Path) -> None:
    card, state = place.fine_tuned
    known = card.model_copy(update={"recipe": recipe(MR), "modalities": ("mr",)})
    save_model(tmp_path / "known", state, known)
    about = {"channels": ("mr",), "classes": card.classes}
    write_manifest(place.store, header(dataset="same", recipe=recipe(MR), **about), ())
    place.export(tmp_path / "out", to="nnunet", model=str(tmp_path / "known"), dataset="same")
    coarse = recipe(MR, spacing_mm=(5.0, 1.0, 1.0))
    write_manifest(place.store, header(dataset="coarse", recipe=coarse, **about), ())
    write_manifest(place.store, header(dataset="ct", recipe=recipe(CT), **about | {"channels": ("ct",)}), ())
    for dataset, differs in (
        ("coarse", "spacing_mm (5.0, 1.0, 1.0) instead of (2.0, 1.0, 1.0)"),
        ("ct", "channels ct instead of mr"),
    ):
        with pytest.raises(ConfigError) as caught:
            place.export(tmp_path / "none", to="nnunet", model=str(tmp_path / "known"), dataset=dataset)
        assert str(caught.value) == (
            f"dataset {dataset!r} is not preprocessed as the model's images were: {differs}; "
            "leave dataset out: the model's card says how its images are prepared"
        )
    assert not (tmp_path / "none").exists()
    # A card that says nothing leaves it to the dataset.
    place.export(tmp_path / "new", to="nnunet", model=str(place.folder / "fine-tuned"), dataset="coarse")
    plans = json.loads((tmp_path / "new" / "plans.json").read_text())
    assert plans["configurations"]["3d_fullres"]["spacing"] == [5.0, 1.0, 1.0]


# ----------------------------------------------------------------------------------------- the output folder


def test_an_unchanged_earlier_export_is_replaced(place: Place, tmp_path: Path) -> None:
    place.export(tmp_path / "out", to="nnunet")
    place.export(tmp_path / "out", to="safetensors")
    assert sorted(p.name for p in (tmp_path / "out").rglob("*") if p.is_file()) == [
        "README.md",
        "export.json",
        "model.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize("missing", ["README.md", "model.json", "model.safetensors"])
def test_an_export_that_was_cut_short_is_taken_up(place: Place, tmp_path: Path, missing: str) -> None:
    output, whole = tmp_path / "out", tmp_path / "whole"
    place.export(output, to="nnunet")
    place.export(whole, to="safetensors")
    account, earlier = account_of(whole), export._earlier_export(str(output))
    (whole / missing).unlink()  # so that the delivery ends there
    with pytest.raises(StorageError, match=f"{output} cannot be written: No such file or directory; make ro"):
        export._deliver(account, whole, str(output), earlier)
    assert account_of(output)["unfinished"]
    place.export(output, to="safetensors")
    assert "unfinished" not in account_of(output)
    found = {p.relative_to(output).as_posix() for p in output.rglob("*") if p.is_file()}
    assert found == {"export.json", "README.md", "model.json", "model.safetensors"}


def test_an_output_that_cannot_be_written_is_one_line(place: Place) -> None:
    with pytest.raises(StorageError) as caught:
        place.export("/proc/x/y")
    assert str(caught.value) == (
        "/proc/x/y cannot be written: No such file or directory; make room or choose another output"
    )


@pytest.mark.parametrize("spoil", ["foreign", "changed"])
def test_other_content_is_left_alone(place: Place, tmp_path: Path, spoil: str) -> None:
    output = tmp_path / "out"
    place.export(output)
    name = "notes.txt" if spoil == "foreign" else "README.md"
    (output / name).write_text("mine")
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError) as caught:
        place.export(output, to="nnunet")
    assert str(caught.value) == (
        f"{output} holds {name}, which is not an unchanged file of an earlier export; give an empty folder"
    )
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_a_file_is_no_folder(place: Place, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError, match="out is a file; give a folder"):
        place.export(tmp_path / "out")


def test_an_export_of_a_broken_model_writes_nothing(place: Place, tmp_path: Path) -> None:
    card, state = place.fine_tuned
    broken = state | {"heads.0.bias": torch.full_like(state["heads.0.bias"], torch.nan)}
    save_model(tmp_path / "broken", broken, card)
    place.export(tmp_path / "out")
    before = account_of(tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"^heads.0.bias of the source is not finite everywhere"):
        place.export(tmp_path / "out", model=str(tmp_path / "broken"))
    assert account_of(tmp_path / "out") == before
    with pytest.raises(CheckpointError, match="is not finite everywhere"):
        place.export(tmp_path / "new", model=str(tmp_path / "broken"))
    assert not (tmp_path / "new").exists()


def test_a_remote_folder_is_written(place: Place) -> None:
    place.export("memory://exported/plain")
    names = files.listing("memory://exported/plain")
    assert names == ["README.md", "export.json", "model.json", "model.safetensors"]


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (("--to", "onnx"), 2, "to: input should be 'nnunet', 'monai' or 'safetensors', found 'onnx'"),
        (("--model", "models:/none@champion"), 2, "no model 'none' in the registry at "),
        (("--model", "nowhere"), 2, "no model at "),
        (("--dataset", "none"), 2, "no manifest at "),
        (("--dataset", "old"), 2, "the recipe of dataset 'old' is not one of this version: "),
        (
            ("--dataset", "one", "--model", "fine-tuned"),
            2,
            "dataset 'one' has the classes {{1: 'liver'}}, the ",
        ),
        (
            ("--dataset", "blobs", "--channels", "3"),
            2,
            "the images are prepared for 2 channels and the network ",
        ),
        (
            ("--dataset", "blobs", "--model", "fine-tuned", "--channels", "1"),
            2,
            "the images are prepared for 2 ",
        ),
        (("--to", "nnunet", "--plans", "none.json"), 2, "no plans at "),
        (("--plans", "none.json"), 2, "plans are nnU-Net's and say nothing to safetensors; leave them out"),
        (("--to", "nnunet", "--plans", "x", "--dataset", "blobs"), 2, "dataset and plans both say how "),
        (("--to", "nnunet", "--plans", "export.md"), 2, "{cwd}/export.md is not JSON: "),
        (
            ("--to", "nnunet", "--plans", "list.json"),
            2,
            "{cwd}/list.json holds a list; give the nnUNetPlans.json",
        ),
        (
            ("--to", "nnunet", "--plans", "empty.json"),
            2,
            "the plans have no configuration '3d_fullres' with ",
        ),
        (("--to", "nnunet", "--patch_size", "[3,8,8]"), 2, "patch_size (3, 8, 8) is not a multiple of "),
        (("--to", "monai", "--patch_size", "[2,2,2]"), 2, "patch_size (2, 2, 2) leaves one voxel in "),
        (("--model", "fine-tuned", "--channels", "2"), 2, "the model takes 1 input channels and cannot be "),
        (
            ("--model", "other", "--to", "nnunet"),
            1,
            "the model's network config is not one of this version: ",
        ),
    ],
)
def test_bad_input_is_one_line(
    place: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    status: int,
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "export.md").write_text("# no JSON")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "empty.json").write_text("{}")
    shutil.copytree(place.folder / "fine-tuned", tmp_path / "fine-tuned")
    card, state = place.fine_tuned
    save_model(
        tmp_path / "other", state, card.model_copy(update={"network": card.network | {"attention": 1}})
    )
    defaults = ("--model", "models:/hssl-unet@latest", "--to", "safetensors", "--output", "out")
    places = ("--tracking.uri", place.tracking.uri, "--store.url", place.store)
    assert cli.main(["export", *defaults, *places, *words]) == status
    told = capsys.readouterr()
    assert told.err.splitlines()[-1].startswith(f"hssl export: error: {line.format(cwd=tmp_path)}")
    assert told.out == ""
    assert not (tmp_path / "out").exists()


def test_missing_model_and_bad_recipe_raise_what_they_should(place: Place, tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        place.export(tmp_path / "out", model=str(tmp_path))
    card, state = segmentation_model(recipe={"spacing_mm": [1, 1]})
    save_model(tmp_path / "odd", state, card)
    with pytest.raises(CheckpointError, match="the recipe in the model's card is not one of this version: "):
        place.export(tmp_path / "out", model=str(tmp_path / "odd"))


# ------------------------------------------------------------------------------------------------------- docs


def test_the_docs_commands_run_as_written(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line for block in blocks(DOCS, "bash") for line in block.splitlines()]
    assert {line.split()[line.split().index("--to") + 1] for line in lines} == set(export.FORMATS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HSSL_TRACKING__URI", place.tracking.uri)
    monkeypatch.setenv("HSSL_STORE__URL", place.store)
    monkeypatch.setenv("HSSL_THREADS", "1")
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "hssl"
        assert cli.main(words) == 0, capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "exported").iterdir()) == [
        "blobs",
        "monai",
        "nnunet",
        "plain",
    ]
    account = account_of(tmp_path / "exported" / "blobs")
    assert (account["assumed"], account["channels"]) == ({}, 2)
