"""Nothing that is read is run: payloads in everything that is read, and none leaves its mark.

Every payload would write a marker file if it were unpickled, imported, evaluated or handed to a shell.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hssl_dist import predict as predict_verb
from hssl_dist.config.loading import read_yaml
from hssl_dist.config.network import NetworkConfig
from hssl_dist.config.parts import TrackingConfig
from hssl_dist.errors import CheckpointError, ConfigError, HsslError, StoreError
from hssl_dist.files.sealed_json import read_sealed
from hssl_dist.imaging import load_case
from hssl_dist.interchange import monai_bundle
from hssl_dist.interchange.portable import portable
from hssl_dist.interchange.preparation import Preparation
from hssl_dist.jobs.segmenter import load_segmenter
from hssl_dist.networks.weights import load_model
from hssl_dist.records import Case, Lineage, Region
from hssl_dist.store import open_reader, read_manifest, write_manifest
from hssl_dist.store.objects import describe
from hssl_dist.store.sealed import seal, unseal
from hssl_dist.tracking import fetch_model, start_run
from hssl_dist.tracking.client import connect
from hssl_dist.training.checkpoint import Checkpoint, CheckpointStore, CommitRecord, SavedFile
from tests.models import segmentation_model
from tests.security.payload import Payload
from tests.tiny_model import save_tiny_model, write_scan
from tests.tiny_network import NETWORK
from tests.tiny_store import CLASSES, write_blobs

LINEAGE = Lineage(config_hash="c" * 64, code_version="0.1.0")
CPU = torch.device("cpu")


# ------------------------------------------------------------------------------------------------ the payload


@pytest.fixture
def payload(tmp_path: Path) -> Iterator[Payload]:
    """A payload that must not have been run when the test ends."""
    made = Payload(tmp_path / "marker")
    yield made
    assert not made.marker.exists()


def test_the_payload_is_live(tmp_path: Path) -> None:
    """Otherwise the tests below would prove nothing."""
    live = Payload(tmp_path / "marker")
    runs: list[Callable[[], object]] = [
        lambda: pickle.loads(live.pickled),
        lambda: torch.load(io.BytesIO(live.torch_zip), weights_only=False),
        lambda: np.load(io.BytesIO(live.numpy_file), allow_pickle=True),
        lambda: eval(live.python),
    ]
    for run in runs:
        run()
        assert live.marker.exists()
        live.marker.unlink()


# ----------------------------------------------------------------------------------------------------- models


def reseal(folder: Path, weights: bytes | None = None, **card: Any) -> None:
    """Other weights or another card, whose size and hash match: who makes a model makes its hashes too.

    The card has no seal, as those of before had none: it is a guard against accidents.
    """
    content = read_sealed("model.json", (folder / "model.json").read_bytes())
    content["card"] |= card
    if weights is not None:
        (folder / "model.safetensors").write_bytes(weights)
        content["weights"] = {"size_bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
    (folder / "model.json").write_text(json.dumps(content))


def safetensors_of(header: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def add_code(folder: Path, payload: Payload) -> None:
    """All that a loader of other packages would run, beside the model."""
    for name in ("model.pkl", "pytorch_model.bin", "data.pickle", "model.joblib", "optimizer.pkl"):
        (folder / name).write_bytes(payload.pickled)
    for name in ("model.pt", "model.pth", "checkpoint.ckpt", ".metadata"):
        (folder / name).write_bytes(payload.torch_zip)
    (folder / "weights.npy").write_bytes(payload.numpy_file)
    with zipfile.ZipFile(folder / "weights.npz", "w") as archive:
        archive.writestr("weights.npy", payload.numpy_file)
    for name in ("__init__.py", "conftest.py", "sitecustomize.py", "model.py", "hssl_dist.py"):
        (folder / name).write_text(payload.python)
    (folder / "MLmodel").write_text(
        "flavors:\n  python_function:\n    loader_module: model\n    python_model: model.pkl\n    code: .\n"
        f"  pytorch:\n    model_data: data\n    note: !!python/object/apply:os.system ['{payload.command}']\n"
    )
    (folder / "data").mkdir()
    (folder / "data/pickle_module_info.txt").write_text("pickle")
    (folder / "data/model.pth").write_bytes(payload.torch_zip)


def test_code_beside_a_model_is_not_run_and_does_not_disturb(
    tmp_path: Path, payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(save_tiny_model(tmp_path / "model"))
    add_code(folder, payload)
    monkeypatch.chdir(folder)
    write_scan(tmp_path / "scans/a.nii.gz")
    words = {"model": folder, "input": tmp_path / "scans", "output": tmp_path / "out", "threads": 1}
    flags = [word for key, value in words.items() for word in (f"--{key}", str(value))]
    assert predict_verb.main(flags) == 0
    assert (tmp_path / "out/a.nii.gz").is_file()


WEIGHTS: dict[str, tuple[Callable[[Payload], bytes], str]] = {
    "a pickle": (lambda payload: payload.pickled, "is not in safetensors format"),
    "a torch file": (lambda payload: payload.torch_zip, "is not in safetensors format"),
    "a numpy file": (lambda payload: payload.numpy_file, "is not in safetensors format"),
    "nothing": (lambda payload: b"", "is not in safetensors format"),
    "a header of 2^63 bytes": (
        lambda payload: (1 << 63).to_bytes(8, "little"),
        "is not in safetensors format",
    ),
    "a tensor of an exabyte": (
        lambda payload: safetensors_of(
            {"a": {"dtype": "F32", "shape": [1 << 30, 1 << 28], "data_offsets": [0, 1 << 60]}}
        ),
        "is not in safetensors format",
    ),
    "a shape that overflows": (
        lambda payload: safetensors_of(
            {"a": {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 0]}}
        ),
        "is not in safetensors format",
    ),
    "numbers outside the file": (
        lambda payload: safetensors_of({"a": {"dtype": "U8", "shape": [9], "data_offsets": [90, 99]}}, b"0"),
        "is not in safetensors format",
    ),
    "overlapping tensors": (
        lambda payload: safetensors_of(
            {name: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for name in "ab"}, b"0000"
        ),
        "is not in safetensors format",
    ),
    "objects": (
        lambda payload: safetensors_of(
            {"a": {"dtype": "OBJECT", "shape": [1], "data_offsets": [0, 8]}}, bytes(8)
        ),
        "is not in safetensors format",
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_no_safetensors_are_refused(tmp_path: Path, payload: Payload, name: str) -> None:
    folder = Path(save_tiny_model(tmp_path / "model"))
    make, reason = WEIGHTS[name]
    reseal(folder, make(payload))
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def with_tensor(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    import safetensors.torch

    state = safetensors.torch.load((folder / "model.safetensors").read_bytes())
    state["heads.0.bias"] = change(state["heads.0.bias"])
    reseal(folder, safetensors.torch.save(state))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_weights_that_are_no_real_numbers_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = Path(save_tiny_model(tmp_path / "model"))
    with_tensor(folder, lambda tensor: tensor.abs().to(dtype))
    with pytest.raises(CheckpointError, match=rf"heads\.0\.bias is of {dtype}, expected real numbers"):
        load_segmenter(TrackingConfig(), str(folder), CPU)


def test_narrower_numbers_become_those_of_the_network(tmp_path: Path) -> None:
    folder = Path(save_tiny_model(tmp_path / "model"))
    with_tensor(folder, lambda tensor: tensor.to(torch.float8_e4m3fn))
    network = load_segmenter(TrackingConfig(), str(folder), CPU).network
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


HUGE = (65536, 65536)
NET = NETWORK.model_dump(mode="json")
CARDS: dict[str, tuple[dict[str, Any], str]] = {
    "a network of 10 TB": ({"network": NET | {"widths": HUGE}}, "the weights do not fit the network"),
    "endless blocks": ({"network": NET | {"encoder_blocks": [1, 10**15]}}, "encoder_blocks"),
    "endless stages": (
        {
            "network": {
                "widths": [1] * 999,
                "strides": [[1, 1, 1]] * 999,
                "kernels": [[1, 1, 1]] * 999,
                "encoder_blocks": [1] * 999,
                "decoder_blocks": [1] * 998,
            }
        },
        "more than 16 stages",
    ),
    "a kernel of a mile": ({"network": NET | {"kernels": [[1, 3, 3], [10**9 + 1] * 3]}}, "kernels"),
    "channels without end": ({"in_channels": 10**12}, "in_channels"),
    "a class of 10^12": ({"classes": {10**12: "a"}}, "classes"),
    "a class below zero": ({"classes": {-5: "a"}}, "classes"),
    "a loader of its own": ({"loader_module": "os"}, "loader_module"),
    "infinite scores": ({"metrics": {"dice": 1e999}}, "metrics"),
}


@pytest.mark.parametrize("name", CARDS)
def test_cards_that_promise_too_much_are_refused_before_memory_is_asked_for(
    tmp_path: Path, name: str
) -> None:
    folder = Path(save_tiny_model(tmp_path / "model"))
    changes, reason = CARDS[name]
    reseal(folder, **changes)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_segmenter(TrackingConfig(), str(folder), CPU)
    assert "\n" not in str(caught.value)


def test_a_huge_network_is_not_exported_either() -> None:
    card, state = segmentation_model()
    huge = card.model_copy(
        update={"network": NetworkConfig(**(card.network | {"widths": HUGE})).model_dump()}
    )
    with pytest.raises(CheckpointError, match="has shape"):
        portable(huge, state)


def test_a_card_of_nested_brackets_is_refused(tmp_path: Path) -> None:
    folder = Path(save_tiny_model(tmp_path / "model"))
    (folder / "model.json").write_text("[" * 10**6)
    with pytest.raises(CheckpointError, match="is no JSON"):
        load_model(folder)


def test_an_mlflow_model_with_code_is_fetched_as_files_and_nothing_of_it_runs(
    tmp_path: Path, payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What anybody who may write to the registry can put there, past our own registering."""
    folder = Path(save_tiny_model(tmp_path / "model"))
    add_code(folder, payload)
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db")
    client = connect(tracking)
    with start_run(tracking, "foreign", {}, {}, LINEAGE) as run:
        experiment = client.get_run(run.id).info.experiment_id
        model = client.create_logged_model(experiment, name="foreign", source_run_id=run.id)
        client.log_model_artifacts(model.model_id, str(folder))
        client.finalize_logged_model(model.model_id, "READY")
        client.create_registered_model("foreign")
        client.create_model_version("foreign", source=model.artifact_location, run_id=run.id)
    for uri in ("models:/foreign/1", f"runs:/{run.id}"):
        fetched = fetch_model(tracking, uri)
        monkeypatch.chdir(fetched.folder)
        assert load_model(fetched.folder)[0].kind == "segmentation"
        assert load_segmenter(tracking, uri, CPU).classes == CLASSES
    monkeypatch.chdir(tmp_path)


# ------------------------------------------------------------------------------------------------ checkpoints


def test_a_hostile_checkpoint_is_refused_and_runs_nothing(tmp_path: Path, payload: Payload) -> None:
    store = CheckpointStore(str(tmp_path / "run"))
    tensors = {"a": torch.zeros(2)}
    place = Path(store.save(Checkpoint(step=1, model=tensors, optimizer=tensors, state={"step": 1})))
    add_code(place, payload)
    assert torch.equal(store.load(1).model["a"], tensors["a"])
    for path in sorted(place.glob("*.safetensors")):
        whole, sealed = path.read_bytes(), (place / "commit.json").read_bytes()
        (line,) = unseal("commit.json", sealed)
        for data in (payload.pickled, payload.torch_zip):
            path.write_bytes(data)
            commit = CommitRecord.model_validate_json(line)
            commit.files[path.name] = SavedFile(size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            (place / "commit.json").write_bytes(seal([commit]))
            with pytest.raises(CheckpointError, match="not in safetensors format"):
                store.load(1)
        path.write_bytes(whole)
        (place / "commit.json").write_bytes(sealed)
    assert store.load(1).step == 1


# ----------------------------------------------------------------------------------------------------- stores

CODECS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "a pickling codec": lambda document: document | {"codecs": [{"name": "numcodecs.pickle"}]},
    "an unknown codec": lambda document: document | {"codecs": [{"name": "os.system", "configuration": {}}]},
    "objects": lambda document: document | {"data_type": "object"},
    "a storage transformer": lambda document: document | {"storage_transformers": [{"name": "os.system"}]},
}


@pytest.mark.parametrize("kind", ["tensorstore", "zarr"])
@pytest.mark.parametrize("name", CODECS)
def test_stores_that_name_code_are_refused(tmp_path: Path, payload: Payload, kind: Any, name: str) -> None:
    root = str(tmp_path / "store")
    manifest = write_blobs(root)
    record = manifest.cases[0]
    folder = tmp_path / "store/blobs"
    path = f"{record.image_path}/0/zarr.json"
    hostile = json.dumps(CODECS[name](json.loads((folder / path).read_text()))).encode()
    (folder / path).write_bytes(hostile)
    for shard in (folder / record.image_path / "0/c").rglob("*"):
        if shard.is_file():
            shard.write_bytes(payload.pickled)
    objects = [describe(item.path, (folder / item.path).read_bytes()) for item in record.objects]
    sealed = record.model_copy(update={"objects": tuple(objects)})
    write_manifest(root, manifest.header, [sealed, *manifest.cases[1:]])
    again = read_manifest(root, "blobs").cases[0]
    region = Region("blobs", again.id, 0, (0, 0, 0), again.shape)
    with pytest.raises(StoreError) as caught:
        open_reader(root, kind).region(again, region)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ other files


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_arrays_of_objects_are_no_images(tmp_path: Path, payload: Payload, ending: str) -> None:
    for number, data in enumerate((payload.numpy_file, payload.pickled, payload.torch_zip)):
        path = tmp_path / f"{number}{ending}"
        path.write_bytes(data)
        with pytest.raises(HsslError):
            load_case(Case("d", "c", "p", (str(path),), None, ("mr",)), {}, 1 << 20)


def test_a_config_is_data(tmp_path: Path, payload: Payload) -> None:
    path = tmp_path / "job.yaml"
    for text in (
        f"name: !!python/object/apply:os.system ['{payload.command}']",
        f"!!python/object/new:os.system ['{payload.command}']",
        "name: !!python/name:os.system",
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match="is not valid YAML"):
            read_yaml(path)


def test_names_of_an_exported_bundle_are_no_expressions(tmp_path: Path, payload: Payload) -> None:
    """MONAI evaluates every text of a bundle's configs that starts with `$`, and imports `_target_`s."""
    from monai.bundle import ConfigParser

    names = (f"${payload.python}", "@network_def", "%configs/inference.json", "_target_")
    card, state = segmentation_model(classes=dict(enumerate(names, start=1)), modalities=(names[0],))
    folder = tmp_path / "bundle"
    folder.mkdir()
    made = portable(card, state)
    preparation = Preparation(recipe=None, modalities=(names[0],), patch_size=None)
    monai_bundle.write_monai(made, preparation, f"${payload.python}", folder)
    assert monai_bundle.verify_monai(made, folder).verified
    parser = ConfigParser()
    parser.read_config(folder / monai_bundle.INFERENCE)
    parser.read_meta(folder / monai_bundle.METADATA)
    parser.get_parsed_content("network_def")
    parser.get_parsed_content("_meta_")
    shutil.rmtree(folder)
