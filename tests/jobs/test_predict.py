"""Predicting: from every kind of input and model, again and again, with bad cases among the good ones."""

from __future__ import annotations

import gzip
import io
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.inferers.utils import sliding_window_inference

from hssl_dist.config.parts import TrackingConfig
from hssl_dist.config.predict import PredictConfig
from hssl_dist.config.preprocess import StorageConfig
from hssl_dist.console import Console
from hssl_dist.errors import MissingError
from hssl_dist.imaging import restore_scores
from hssl_dist.jobs import predict
from hssl_dist.jobs.predict_cases import PredictionRecord
from hssl_dist.jobs.preprocess_cases import Assignment, store_cases
from hssl_dist.records import Case, CaseRecord, Outcome
from hssl_dist.segmentation import keep_largest
from hssl_dist.store import open_reader
from hssl_dist.tracking import set_alias, start_run
from tests.dicom_files import series, write_files
from tests.tiny_model import (
    LINEAGE,
    PATCH_SIZE,
    recipe_of,
    save_tiny_model,
    tiny_network,
    write_scan,
)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return save_tiny_model(tmp_path / "model")


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for number, name in enumerate(("a", "b", "c")):
        write_scan(tmp_path / f"scans/{name}.nii.gz", number)
    return tmp_path / "scans"


def run(model: str, source: Path | str, output: Path | str, **changes: Any) -> Outcome:
    values = {"model": model, "input": str(source), "output": str(output), "threads": 1}
    return predict.run(PredictConfig.model_validate(values | changes), Console(io.StringIO()))


def counts(outcome: Outcome) -> tuple[int, int, int]:
    """Cases predicted, skipped and failed."""
    summary = outcome.summary
    return summary["predicted"], summary["skipped"], len(summary["failed"])


def label_maps(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.nii.gz"))}


# ------------------------------------------------------------------------------------------ what is predicted


def stored(folder: Path, scan: Path, modalities: tuple[str, ...] = ("mr",)) -> tuple[CaseRecord, np.ndarray]:
    """A scan's record and image as preprocessing stores them and training reads them."""
    case = Case("tiny", scan.name.partition(".")[0], "p", (str(scan),), None, modalities)
    work = Assignment(case, "tiny", "tiny", (), (), "0" * 64)
    (record,) = store_cases([work], str(folder), recipe_of(modalities), StorageConfig(), 1 << 20)
    assert isinstance(record, CaseRecord), record
    return record, open_reader(str(folder)).image(record)


def test_it_is_the_network_s_answer_to_the_stored_image_on_the_source_s_grid(model, scans, tmp_path):
    assert counts(run(model, scans, tmp_path / "out", windows_per_batch=3)) == (3, 0, 0)
    for path in sorted(scans.iterdir()):
        record, image = stored(tmp_path / "store", path)
        shape = record.geometry.shape
        assert all(size >= patch for size, patch in zip(shape, PATCH_SIZE, strict=True))
        with torch.inference_mode():
            logits = sliding_window_inference(
                torch.from_numpy(image)[None], PATCH_SIZE, 4, tiny_network(), 0.5, mode="gaussian"
            )
        expected = restore_scores([logits[0].numpy()], record.geometry)
        found, source = nibabel.load(tmp_path / "out" / path.name), nibabel.load(path)
        label = np.asarray(found.dataobj)
        assert (label == expected).mean() > 0.999
        assert set(np.unique(label)) == {0, 1, 2}
        assert label.shape == source.shape
        np.testing.assert_array_equal(found.affine, source.affine)


def test_neither_batches_nor_the_runner_s_order_matter(model, scans, tmp_path):
    run(model, scans, tmp_path / "one", windows_per_batch=1)
    run(model, scans, tmp_path / "five", windows_per_batch=5)
    one, five = label_maps(tmp_path / "one"), label_maps(tmp_path / "five")
    assert one.keys() == five.keys()
    for name in one:
        mine, other = (np.asarray(nibabel.load(tmp_path / f / name).dataobj) for f in ("one", "five"))
        assert (mine == other).mean() > 0.999
    assert len(set(one.values())) == 3


def test_overlap_and_flips_are_settings_of_their_own(model, scans, tmp_path):
    outputs = {}
    for name, settings in {
        "plain": {},
        "none": {"flips": ()},
        "x": {"flips": ("x",)},
        "all": {"flips": True},
        "apart": {"overlap": 0.0},
    }.items():
        run(model, scans / "a.nii.gz", tmp_path / name, **settings)
        outputs[name] = (tmp_path / name / "a.nii.gz").read_bytes()
    assert outputs["plain"] == outputs["none"]
    assert len(set(outputs.values())) == 4
    record = json.loads((tmp_path / "all/records/a.json").read_text())
    assert record["flips"] == [0, 1, 2]


@pytest.mark.parametrize("way", ["foreground", "class"])
def test_only_the_largest_component_is_kept_if_the_card_says_so(scans, tmp_path, way):
    run(save_tiny_model(tmp_path / "all", seed=6), scans, tmp_path / "out")
    whole = label_maps(tmp_path / "out")
    model = save_tiny_model(tmp_path / "largest", seed=6, keep_largest=way)
    again = run(model, scans, tmp_path / "out")
    assert counts(again) == (3, 0, 0)  # the weights are equal, what is made of them is not
    for path in sorted((tmp_path / "out").glob("*.nii.gz")):
        label = np.asarray(nibabel.loadsave.load(path).dataobj)
        before = np.asarray(nibabel.Nifti1Image.from_bytes(gzip.decompress(whole[path.name])).dataobj)
        np.testing.assert_array_equal(label, keep_largest(before, way))
        assert 0 < (label > 0).sum() < (before > 0).sum()


# --------------------------------------------------------------------------------------- inputs and models


def test_models_come_from_the_registry_by_alias_version_run_or_folder(scans, tmp_path):
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db")
    folder = save_tiny_model(tmp_path / "model")
    with start_run(tracking, "finetune", {}, {}, LINEAGE) as tracked:
        version = tracked.register(folder, "tiny", LINEAGE)
        run_id = tracked.id
    with pytest.raises(MissingError) as caught:
        run("models:/tiny@champion", scans, tmp_path / "none", tracking=tracking)
    assert str(caught.value) == (
        f"model 'tiny' in the registry at {tracking.uri} has no alias 'champion': it has versions 1, "
        "aliases latest"
    )
    set_alias(tracking, "tiny", version.version, "champion")
    run(folder, scans, tmp_path / "by-folder")
    uris = {"models:/tiny@champion": "models:/tiny/1", "models:/tiny/1": "models:/tiny/1",
            f"runs:/{run_id}": f"runs:/{run_id}"}  # fmt: skip
    for number, (uri, exact) in enumerate(uris.items()):
        outcome = run(uri, scans, tmp_path / str(number), tracking=tracking)
        assert outcome.summary["model"] == exact
        assert label_maps(tmp_path / str(number)) == label_maps(tmp_path / "by-folder")
        record = PredictionRecord.model_validate_json((tmp_path / f"{number}/records/a.json").read_bytes())
        assert record.model == exact


def test_names_are_those_of_the_input_without_channels(tmp_path):
    model = save_tiny_model(tmp_path / "model", ("mr", "mr"))
    for case in ("p 1", "p_2"):
        for channel in (0, 1):
            write_scan(tmp_path / f"set/imagesTs/{case}_{channel:04d}.nii.gz", channel)
    description = {"channel_names": {"0": "T2", "1": "ADC"}, "labels": {}, "file_ending": ".nii.gz"}
    (tmp_path / "set/dataset.json").write_text(json.dumps(description))
    outcome = run(model, tmp_path / "set", tmp_path / "out")
    assert counts(outcome) == (2, 0, 0)
    assert outcome.warnings == ()
    assert list(label_maps(tmp_path / "out")) == ["p 1.nii.gz", "p_2.nii.gz"]
    assert run(model, tmp_path / "set/imagesTs/p_2_0001.nii.gz", tmp_path / "out").summary["skipped"] == 1


def test_channels_may_be_one_4d_file(tmp_path):
    model = save_tiny_model(tmp_path / "model", ("mr", "mr"))
    files = [write_scan(tmp_path / f"in/x_{channel:04d}.nii.gz", channel) for channel in (0, 1)]
    both = np.stack([np.asarray(nibabel.load(path).dataobj) for path in files], axis=-1)
    (tmp_path / "4d").mkdir()
    nibabel.save(nibabel.Nifti1Image(both, nibabel.load(files[0]).affine), tmp_path / "4d/x.nii.gz")
    run(model, tmp_path / "in", tmp_path / "out-two")
    run(model, tmp_path / "4d", tmp_path / "out-one")
    one, two = (nibabel.load(tmp_path / f"out-{n}/x.nii.gz") for n in ("one", "two"))
    np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(two.dataobj))
    np.testing.assert_array_equal(one.affine, two.affine)


def test_a_dicom_series_that_says_it_is_another_modality_fails_alone(tmp_path):
    model = save_tiny_model(tmp_path / "model", ("mr",))
    rng = np.random.default_rng(0)
    planes = rng.integers(100, 2000, (6, 14, 12)).astype(np.uint16)
    write_files(tmp_path / "in/anna", series(planes, 3.0, spacing_mm=(2.0, 1.5)))
    write_scan(tmp_path / "in/ben.nii.gz")
    outcome = run(model, tmp_path / "in", tmp_path / "out")
    assert outcome.summary["failed"] == [
        {"case": "anna", "reason": "anna: the series is CT, the model takes mr"}
    ]
    ct = save_tiny_model(tmp_path / "ct", ("ct",))
    assert counts(run(ct, tmp_path / "in/anna", tmp_path / "out-ct")) == (1, 0, 0)
    assert nibabel.load(tmp_path / "out-ct/anna.nii.gz").shape == (12, 14, 6)


def test_another_modality_than_the_models_is_doubted_each_time(tmp_path):
    ct = save_tiny_model(tmp_path / "ct", ("ct",))
    write_scan(tmp_path / "in/ben.nii.gz")
    doubt = "the model takes CT in HU, but hardly a voxel is below -200 (the lowest is "
    for done in ((1, 0, 0), (0, 1, 0)):
        outcome = run(ct, tmp_path / "in", tmp_path / "out")
        assert counts(outcome) == done
        assert outcome.status == "done"
        assert outcome.summary["doubted"] == ["ben"]
        (warning,) = outcome.warnings
        assert warning.startswith(f"ben: {doubt}")
    record = json.loads((tmp_path / "out/records/ben.json").read_text())
    assert record["warnings"] == [warning.removeprefix("ben: ")]
    assert run(save_tiny_model(tmp_path / "mr"), tmp_path / "in", tmp_path / "mr-out").warnings == ()


# -------------------------------------------------------------------------------------- again and again


def test_what_is_done_is_not_done_again(model, scans, tmp_path):
    out = tmp_path / "out"
    assert counts(run(model, scans, out)) == (3, 0, 0)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.*")}
    outcome = run(model, scans, out, windows_per_batch=2)
    assert counts(outcome) == (0, 3, 0)
    assert outcome.status == "done"
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.*")} == times
    write_scan(tmp_path / "scans/d.nii.gz", 9)
    assert counts(run(model, scans, out)) == (1, 3, 0)


def test_another_model_other_settings_or_other_bytes_are_predicted_anew(model, scans, tmp_path):
    out = tmp_path / "out"
    run(model, scans, out)
    first = label_maps(out)
    write_scan(scans / "b.nii.gz", 77)
    assert counts(run(model, scans, out)) == (1, 2, 0)
    assert counts(run(model, scans, out, overlap=0.25)) == (3, 0, 0)
    other = save_tiny_model(tmp_path / "other", seed=5)
    assert counts(run(other, scans, out)) == (3, 0, 0)
    assert all(label_maps(out)[name] != first[name] for name in first)
    resized = save_tiny_model(tmp_path / "resized", seed=5, patch_size=(4, 8, 16))
    assert counts(run(resized, scans, out)) == (3, 0, 0)
    moved = shutil.copytree(resized, tmp_path / "moved")
    assert counts(run(str(moved), scans, out)) == (0, 3, 0)


def test_a_lost_label_map_or_record_of_a_killed_run_is_made_again(model, scans, tmp_path):
    out = tmp_path / "out"
    run(model, scans, out)
    expected = label_maps(out)
    (out / "a.nii.gz").unlink()
    claimed = PredictionRecord.model_validate_json((out / "records/b.json").read_bytes())
    (out / "records/b.json").write_text(claimed.model_copy(update={"label_map": None}).to_json())
    (out / "b.nii.gz").write_bytes(b"as a killed run never leaves it")
    assert counts(run(model, scans, out)) == (2, 1, 0)
    assert label_maps(out) == expected


def test_files_of_others_are_never_replaced(model, scans, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.nii.gz").write_bytes(b"drawn by hand")
    run(model, scans / "b.nii.gz", out)
    (out / "b.nii.gz").write_bytes(b"mended by hand")
    outcome = run(model, scans, out)
    assert counts(outcome) == (1, 0, 2)
    assert outcome.summary["failed"] == [
        {
            "case": "a",
            "reason": "a.nii.gz in the output is not from hssl predict; move it, or choose another output",
        },
        {
            "case": "b",
            "reason": "b.nii.gz in the output was changed since it was predicted; move it, or choose another "
            "output",
        },
    ]
    assert (out / "a.nii.gz").read_bytes() == b"drawn by hand"
    assert (out / "b.nii.gz").read_bytes() == b"mended by hand"


# ---------------------------------------------------------------------------------------- on Ray


@pytest.mark.usefixtures("ray_cluster")
def test_on_ray_it_gives_the_same_files_and_the_same_failures(model, scans, tmp_path):
    (scans / "bad.nii.gz").write_bytes(b"no image")
    here = run(model, scans, tmp_path / "here")
    there = run(model, scans, tmp_path / "there", runner="ray")
    assert counts(there) == counts(here) == (3, 0, 1)
    assert there.summary["failed"] == here.summary["failed"]
    assert label_maps(tmp_path / "there") == label_maps(tmp_path / "here")
    for path in sorted((tmp_path / "here/records").iterdir()):
        assert (tmp_path / "there/records" / path.name).read_bytes() == path.read_bytes()
    assert counts(run(model, scans, tmp_path / "there", runner="ray")) == (0, 3, 1)
