"""What predicting refuses: one line, by name, exactly; and what of many cases fails alone."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hssl_dist.config.loading import load_config
from hssl_dist.config.parts import TrackingConfig
from hssl_dist.config.predict import PredictConfig
from hssl_dist.config.pretrain import ObjectiveConfig
from hssl_dist.console import Console
from hssl_dist.errors import CheckpointError, ConfigError, HsslError, MissingError, TrackingError
from hssl_dist.imaging import write_nifti
from hssl_dist.jobs import predict
from hssl_dist.jobs.predict_cases import Assignment, Plan, PredictionRecord, predict_with
from hssl_dist.jobs.preprocess_cases import Refused
from hssl_dist.jobs.segmenter import load_segmenter
from hssl_dist.networks.pretraining import build_pretraining_network
from hssl_dist.networks.weights import ModelCard, load_model, save_model
from hssl_dist.records import Case, Outcome
from hssl_dist.segmentation import Windows
from tests.dicom_files import series, volume, write_files
from tests.tiny_model import LINEAGE, recipe_of, save_tiny_model, write_scan
from tests.tiny_network import NETWORK


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    write_scan(tmp_path / "scans/a.nii.gz")
    return tmp_path / "scans"


def run(model: str, source: Path, output: Path, **changes: Any) -> Outcome:
    values = {"model": model, "input": str(source), "output": str(output), "threads": 1}
    return predict.run(PredictConfig.model_validate(values | changes), Console(io.StringIO()))


def refused(kind: type[HsslError], model: str, source: Path, output: Path, **changes: Any) -> str:
    with pytest.raises(kind) as caught:
        run(model, source, output, **changes)
    assert "\n" not in str(caught.value)
    assert not output.exists() or not list(output.rglob("*.json"))
    return str(caught.value)


# --------------------------------------------------------------------------------------------------- models


def save_pretrained(folder: Path) -> str:
    torch.manual_seed(0)
    network = build_pretraining_network(NETWORK, ObjectiveConfig(), tasks=2, groups=2)
    card = ModelCard(
        kind="pretrained", network=NETWORK.model_dump(mode="json"), in_channels=1, lineage=LINEAGE
    )
    folder.mkdir()
    save_model(folder, network.state_dict(), card)
    return str(folder)


def test_models_that_cannot_segment(scans, tmp_path):
    out = tmp_path / "out"
    old = recipe_of().model_dump(mode="json") | {"version": 1}
    unknown = recipe_of().model_dump(mode="json") | {"colour": 1}
    models = {
        save_pretrained(tmp_path / "pretrained"): (
            "the model is a pretrained one and has no segmentation head; fine-tune it first"
        ),
        save_tiny_model(tmp_path / "before", recipe=None, patch_size=None): (
            "the model's card does not say how images are prepared for it (recipe, modalities, patch_size); "
            "fine-tune it again"
        ),
        save_tiny_model(tmp_path / "old", recipe=old): (
            "the model's images were prepared by version 1 of the recipe, this is version 2; preprocess its "
            "dataset and fine-tune it again"
        ),
        save_tiny_model(tmp_path / "unknown", recipe=unknown): (
            "the recipe in the model's card is not one of this version: colour: Extra inputs are not "
            "permitted; fine-tune it again"
        ),
        save_tiny_model(tmp_path / "odd", patch_size=(3, 8, 8)): (
            "the model's patch_size (3, 8, 8) is not a multiple of the network's reduction (2, 2, 2); "
            "fine-tune it again with one that is"
        ),
        save_tiny_model(tmp_path / "torn", recipe=recipe_of(("mr", "mr")).model_dump(mode="json")): (
            "the model takes 1 channels, its card describes 1 modalities and 2 recipes; it is damaged: "
            "fine-tune it again"
        ),
    }
    for model, message in models.items():
        assert refused(CheckpointError, model, scans, out) == message


def test_models_that_are_not_there(scans, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    out = tmp_path / "out"
    assert refused(MissingError, str(tmp_path / "nowhere"), scans, out) == (
        f"no model at {tmp_path}/nowhere: there is no model.json; give a model's folder, models:/name@alias, "
        "models:/name/version or runs:/id"
    )
    closed = {"uri": "http://127.0.0.1:9"}
    assert refused(TrackingError, "models:/tiny@champion", scans, out, tracking=closed) == (
        "fetching 'models:/tiny@champion' failed at http://127.0.0.1:9: Connection refused; check "
        "tracking.uri and the server"
    )


def test_a_network_of_nan_is_told_by_case(scans, tmp_path):
    folder = Path(save_tiny_model(tmp_path / "model"))
    card, state = load_model(folder)
    state["heads.0.bias"][1] = float("nan")
    save_model(folder, state, card)
    outcome = run(str(folder), scans, tmp_path / "out")
    assert outcome.status == "failed"
    (failed,) = outcome.summary["failed"]
    assert failed["reason"].startswith("the network's logits are NaN or infinite in slices 0 to ")
    assert list((tmp_path / "out").rglob("*")) == []


class Failing(nn.Module):
    """Fails at its first window, and at no other."""

    def __init__(self, network: nn.Module, error: Exception) -> None:
        super().__init__()
        self.network, self.errors = network, [error]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.errors:
            raise self.errors.pop()
        logits: torch.Tensor = self.network(images)
        return logits


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("nobody\nforesaw it"), "RuntimeError: nobody\nforesaw it"),
        (MemoryError(), "not enough memory for the volume; lower windows_per_batch, or use a larger machine"),
    ],
)
def test_what_nobody_foresaw_is_the_one_case_s(tmp_path, error, reason):
    model = save_tiny_model(tmp_path / "model")
    segmenter = load_segmenter(TrackingConfig(), model, torch.device("cpu"))
    broken = replace(segmenter, network=Failing(segmenter.network, error))
    windows = Windows(segmenter.patch_size)
    plan = Plan(TrackingConfig(), model, segmenter.key, str(tmp_path / "out"), windows, 1 << 20, None)
    scans = [write_scan(tmp_path / f"{name}.nii.gz") for name in ("a", "b")]
    cases = [Case("d", Path(scan).name[0], "p", (scan,), None, ("mr",)) for scan in scans]
    one, other = predict_with(broken, [Assignment(case, (), "0" * 64) for case in cases], plan)
    assert one == Refused("a", reason)
    assert isinstance(other, PredictionRecord)
    assert (tmp_path / "out/b.nii.gz").exists()


# --------------------------------------------------------------------------------------------------- inputs


def test_inputs_that_do_not_suit_the_model(tmp_path):
    one = save_tiny_model(tmp_path / "one")
    two = save_tiny_model(tmp_path / "two", ("mr", "mr"))
    ct = save_tiny_model(tmp_path / "ct", ("ct",))
    root = tmp_path / "Task"
    write_scan(root / "imagesTs/a.nii.gz")
    described = root / "dataset.json"
    table = [
        (two, {"modality": {"0": "MRI"}}, f"{root} has 1 channels by its dataset.json (MRI), the model takes "
         "2 (mr, mr); choose a model made for such images"),
        (one, {"modality": {"0": "CT"}}, f"channel 0 of {root} is ct by its dataset.json ('CT'), the model "
         "takes mr; choose a model made for such images"),
        (ct, {"modality": {"0": "T1w"}}, f"channel 0 of {root} is mr by its dataset.json ('T1w'), the model "
         "takes ct; choose a model made for such images"),
    ]  # fmt: skip
    for model, description, message in table:
        described.write_text(json.dumps(description))
        assert refused(ConfigError, model, root, tmp_path / "out") == message
    described.write_text(json.dumps({"modality": {"0": "noNorm"}}))
    assert run(ct, root, tmp_path / "out").status == "done"


def test_an_output_that_is_the_input_or_no_folder(scans, tmp_path):
    model = save_tiny_model(tmp_path / "model")
    (tmp_path / "link").symlink_to(scans)
    before = (scans / "a.nii.gz").read_bytes()
    for source, output in [
        (scans, scans),
        (scans / "a.nii.gz", scans),
        (scans, tmp_path / "link"),
        (scans, scans / "../scans/"),
    ]:
        with pytest.raises(ConfigError) as caught:
            run(model, source, output)
        shown = PredictConfig.model_validate({"model": model, "input": "x", "output": str(output)}).output
        assert str(caught.value) == (
            f"output {shown} is the input's folder; choose another, so that no image is replaced"
        )
    write_files(tmp_path / "dicom/anna", series(volume()))
    with pytest.raises(ConfigError, match=r"dicom/anna is the input's folder"):
        run(model, tmp_path / "dicom", tmp_path / "dicom/anna")
    assert (scans / "a.nii.gz").read_bytes() == before
    assert [path.name for path in scans.iterdir()] == ["a.nii.gz"]
    (tmp_path / "file").write_bytes(b"x")
    assert refused(ConfigError, model, scans, tmp_path / "file") == (
        f"output {tmp_path}/file is a file; choose a folder"
    )
    assert refused(ConfigError, model, scans, tmp_path / "a.tar!/x") == (
        f"output {tmp_path}/a.tar!/x is in an archive; choose a folder"
    )


def test_bad_cases_fail_with_their_reasons_and_stop_no_other(tmp_path):
    model = save_tiny_model(tmp_path / "model")
    folder = tmp_path / "in"
    write_scan(folder / "good.nii.gz")
    (folder / "no-image.nii.gz").write_bytes(b"no image")
    (folder / "cut.nii.gz").write_bytes((folder / "good.nii.gz").read_bytes()[:900])
    (folder / "detached.mhd").write_bytes(b"NDims = 3")
    (folder / "pipe.nii.gz").symlink_to("/dev/zero")
    (folder / "two\nlines.nii.gz").write_bytes(b"x")
    write_nifti(folder / "constant.nii.gz", np.full((9, 9, 9), 7, np.int16), np.eye(4))
    write_nifti(folder / "two-channels.nii.gz", np.random.default_rng(0).random((9, 9, 9, 2)), np.eye(4))
    write_nifti(folder / "large.nii.gz", np.zeros((200, 9, 9), np.int16), np.eye(4))
    outcome = run(model, folder, tmp_path / "out", max_voxels=9000)
    assert outcome.status == "failed"
    assert outcome.summary["predicted"] == 1
    failed = {item["case"]: item["reason"] for item in outcome.summary["failed"]}
    assert failed == {
        "constant": "constant.nii.gz: the image is constant: every voxel is 7",
        "cut": "cut.nii.gz: truncated gzip: it ends before its checksum",
        "detached": "detached.mhd: a header without its voxels; convert it to .mha",
        "large": "large.nii.gz: the header declares 200 x 9 x 9 voxels; max_voxels allows 9000",
        "no-image": "no-image.nii.gz: not a NIfTI file; convert it to .nii.gz",
        "pipe": "pipe.nii.gz: cannot be read: it is a pipe or a device",
        "two-channels": "two-channels.nii.gz: the image has 2 channels (4th dimension), but 1 channel is "
        "expected (mr)",
        "two?lines": "its name cannot be printed; rename the file",
    }
    assert list(outcome.warnings) == [f"{case}: {reason}" for case, reason in failed.items()]
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == ["good.nii.gz"]


def test_cases_with_too_many_or_too_few_channels_fail_alone(tmp_path):
    model = save_tiny_model(tmp_path / "model", ("mr", "mr"))
    for name in ("a_0000", "a_0001", "b_0000", "b_0001", "b_0002", "c_0000"):
        write_scan(tmp_path / f"in/{name}.nii.gz", int(name[-1]))
    outcome = run(model, tmp_path / "in", tmp_path / "out")
    assert outcome.summary["predicted"] == 1
    assert outcome.summary["failed"] == [
        {
            "case": "b",
            "reason": "3 channels, the last is b_0002.nii.gz; the model takes 2 (mr, mr): if these files are "
            "cases of their own, set `layout` to folder",
        },
        {
            "case": "c",
            "reason": "c_0000.nii.gz: the image has one channel, but 2 channels are expected (mr, mr): put "
            "them into the 4th dimension, or into files of their own as nnU-Net does (_0000, _0001, ...)",
        },
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_without_permission(scans, tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    message = refused(HsslError, save_tiny_model(tmp_path / "model"), scans, tmp_path / "out")
    assert message.startswith(f"{tmp_path}/out cannot be written: Permission denied")


# --------------------------------------------------------------------------------------------- command line


def test_config_errors_are_one_line(tmp_path):
    base = ("--model", "m", "--input", "i", "--output", "o")
    for words, message in [
        (("--flips", "y,y"), "flips: ('y', 'y') names an axis twice; name each once"),
        (("--overlap", "1"), "overlap: input should be less than 1"),
        (("--anonymous", "true"), "`anonymous` and `endpoint` are for sources on s3://, not for "),
    ]:
        with pytest.raises(ConfigError) as caught:
            load_config(PredictConfig, "hssl predict", (*base, *words))
        assert str(caught.value).startswith(message)
    assert load_config(PredictConfig, "hssl predict", (*base, "--flips", "z,x")).flipped_axes == (0, 2)
    assert load_config(PredictConfig, "hssl predict", (*base, "--flips", "true")).flipped_axes == (0, 1, 2)


def test_as_a_command_a_failed_case_is_status_1_and_in_the_json(scans, tmp_path):
    model = save_tiny_model(tmp_path / "model")
    (scans / "bad.nii.gz").write_bytes(b"")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HSSL_")}
    words = ["--model", model, "--input", str(scans), "--output", str(tmp_path / "out"), "--threads", "1"]
    finished = subprocess.run(
        [sys.executable, "-m", "hssl_dist.predict", *words, "--json"],
        capture_output=True, text=True, timeout=120, env=environment,
    )  # fmt: skip
    assert finished.returncode == 1, finished.stderr
    summary = json.loads(finished.stdout)
    assert summary.pop("seconds") > 0
    assert summary == {
        "verb": "predict",
        "status": "failed",
        "model": model,
        "input": str(scans),
        "output": str(tmp_path / "out"),
        "cases": 2,
        "predicted": 1,
        "skipped": 0,
        "failed": [{"case": "bad", "reason": "bad.nii.gz: the file is empty"}],
        "doubted": [],
    }
    assert finished.stderr.splitlines()[-1] == "warning: bad: bad.nii.gz: the file is empty"
