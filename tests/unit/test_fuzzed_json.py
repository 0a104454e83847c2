"""JSON that others wrote, damaged at random: a value, or one of the package's errors in one line.

Dataset descriptions, split files, manifests and records with and without a good seal, surveys, model cards.
`HSSL_TEST_DEPTH` (tests/depth.py) multiplies the examples.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hssl_dist.config.parts import CacheConfig, SplitConfig
from hssl_dist.config.preprocess import DatasetConfig
from hssl_dist.console import Console
from hssl_dist.datasets import discover
from hssl_dist.datasets.class_names import class_names
from hssl_dist.datasets.inputs import find_inputs
from hssl_dist.errors import CheckpointError, ConfigError, InputError, MissingError, StoreError
from hssl_dist.files.sealed_json import read_sealed
from hssl_dist.imaging import load_case, write_nifti
from hssl_dist.jobs.sources import hash_cases
from hssl_dist.jobs.surveys import read_surveys
from hssl_dist.networks.weights import ModelCard, load_model, network_config, save_model
from hssl_dist.records import Lineage, Manifest, Quarantined, Region
from hssl_dist.sampling import Split, split_manifest
from hssl_dist.sampling.split_files import named_datasets
from hssl_dist.store import (
    case_columns,
    open_reader,
    read_quarantine,
    read_records,
    read_whole_manifest,
    write_quarantined,
)
from tests.case_records import header, record
from tests.depth import examples
from tests.mutations import damaged, damaged_json
from tests.refusals import value_or_refusal
from tests.tiny_network import NETWORK
from tests.tiny_store import write_blobs

MSD = {
    "name": "toy",
    "modality": {"0": "MRI"},
    "labels": {"0": "background", "1": "box"},
    "numTraining": 2,
    "training": [
        {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"},
        {"image": "./imagesTr/b.nii.gz", "label": "./labelsTr/b.nii.gz"},
    ],
    "test": ["./imagesTs/c.nii.gz"],
}
NNUNET = {
    "channel_names": {"0": "T1"},
    "labels": {"background": 0, "box": 1},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}
SPLIT = {"train": ["p0", "p1"], "validation": ["p2"], "test": ["p3"]}


# -------------------------------------------------------------------------------------------- descriptions


@pytest.fixture(scope="module")
def challenge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and labels of two cases, as both challenges name them, and a test image."""
    root = tmp_path_factory.mktemp("challenge")
    rng = np.random.default_rng(0)
    label = np.zeros((4, 5, 6), np.uint8)
    label[1:3, 1:3, 1:3] = 1
    for folder, names in (("imagesTr", "ab"), ("labelsTr", "ab"), ("imagesTs", "c")):
        (root / folder).mkdir()
        for name in names:
            image = label if folder == "labelsTr" else rng.integers(0, 99, label.shape, dtype=np.int16)
            write_nifti(root / folder / f"{name}.nii.gz", image, np.eye(4))
    other = shutil.copytree(root, root / "nnunet")
    for path in other.glob("images*/*"):
        path.rename(path.with_name(f"{path.name[0]}_0000.nii.gz"))
    return root


def preprocess(layout: str, root: Path) -> list[str | None]:
    """What becomes of the cases on the way to their volumes: nothing, or the reason of a refusal."""
    config = DatasetConfig(name="toy", layout=layout, source=str(root), group="toys")
    dataset = discover(config, str(root.parent))
    reasons: list[str | None] = []
    for case in hash_cases(dataset.cases, str(root), Console(io.StringIO())):
        reasons.append(case.problem)
        if case.problem is None:
            value_or_refusal(lambda: load_case(case.case, dataset.classes, 1 << 16), InputError)  # noqa: B023
    assert reasons
    assert not any("\n" in reason for reason in reasons if reason)
    return reasons


@pytest.mark.parametrize("layout", ["msd", "nnunet"])
def test_any_description_of_a_challenge_is_followed_or_refused(challenge, layout):
    root = challenge / "nnunet" if layout == "nnunet" else challenge
    description = NNUNET if layout == "nnunet" else MSD
    (root / "dataset.json").write_text(json.dumps(description))
    assert preprocess(layout, root) == [None] * 3

    @given(damaged_json(description))
    @examples(120)
    def read(data: bytes) -> None:
        (root / "dataset.json").write_bytes(data)
        value_or_refusal(lambda: preprocess(layout, root), ConfigError, MissingError)
        value_or_refusal(lambda: class_names(str(root)), ConfigError)
        value_or_refusal(lambda: find_inputs(str(root), "auto"), ConfigError, MissingError)

    read()


@given(damaged_json(SPLIT) | damaged_json({"liver": SPLIT, "heart": {"train": ["x"]}}))
@examples(150)
def test_any_split_file_is_followed_or_refused(split_file, data):
    split_file.write_bytes(data)
    manifest = Manifest(header(), tuple(record(f"c{n}", patient=f"p{n}") for n in range(4)), "sha")

    split = value_or_refusal(lambda: split_manifest(manifest, SplitConfig(file=str(split_file))), ConfigError)
    value_or_refusal(lambda: named_datasets(str(split_file)), ConfigError)
    if isinstance(split, Split):
        assert sorted(split.train + split.validation + split.test) == ["p0", "p1", "p2", "p3"]


@pytest.fixture(scope="module")
def split_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("splits") / "split.json"


# -------------------------------------------------------------------------------------------------- stores


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    """A store of three cases and one that failed, and the manifest's lines above the seal."""
    root = tmp_path_factory.mktemp("store")
    write_blobs(str(root), "toy", patients=1)
    failed = Quarantined(id="bad", patient="p", key="k", reason="it is cut off", sources=("bad.nii",))
    write_quarantined(str(root), "toy", failed)
    return root, (root / "toy/manifest.jsonl").read_bytes().splitlines()[:-1]


def read_all(root: Path) -> None:
    """Everything of a store, whatever its manifest says: volumes, labels and boxes of each case."""
    manifest = read_whole_manifest(str(root), "toy")
    assert len(case_columns(manifest.cases).labelled) == len(manifest.cases)
    reader = open_reader(str(root))
    for case in manifest.cases:
        value_or_refusal(lambda: reader.image(case), StoreError)  # noqa: B023
        value_or_refusal(lambda: reader.label(case), StoreError)  # noqa: B023
        region = Region(case.dataset, case.id, 0, (-1, 2, 3), (4, 4, 4))
        value_or_refusal(lambda: reader.region(case, region), StoreError)  # noqa: B023


def test_any_manifest_is_read_or_refused_whether_its_seal_is_good_or_not(store):
    root, lines = store
    path = root / "toy/manifest.jsonl"
    whole = path.read_bytes()
    read_all(root)

    @given(damaged(whole), st.sampled_from(range(len(lines))), st.data())
    @examples(120)
    def read(data: bytes, place: int, more: st.DataObject) -> None:
        path.write_bytes(data)
        if data.rstrip(b"\n") != whole.rstrip(b"\n"):
            found = value_or_refusal(lambda: read_whole_manifest(str(root), "toy"), StoreError)
            assert isinstance(found, StoreError), "a bad seal is taken for a good one"
        line = more.draw(damaged_json(json.loads(lines[place])))
        path.write_bytes(resealed([*lines[:place], line, *lines[place + 1 :]]))
        value_or_refusal(lambda: read_all(root), StoreError)

    read()
    path.write_bytes(whole)


def resealed(lines: list[bytes]) -> bytes:
    """A sealed file of any lines, which may hold any bytes."""
    text = b"".join(line + b"\n" for line in lines)
    count = text.count(b"\n")
    seal_line = json.dumps({"lines": count, "sha256": hashlib.sha256(text).hexdigest()}).encode()
    return text + seal_line + b"\n"


@pytest.mark.parametrize(
    "changes",
    [
        {"modalities": []},
        {"modalities": ["mr", "mr"]},
        {"modalities": [], "intensities": []},
        {"intensities": []},
        {"objects": []},
        {"objects": [{"path": "p0.zarr/0/\0", "size_bytes": 1, "sha256": ""}]},
        *({"shape": shape} for shape in ([0, 16, 16], [-6, 16, 16], [6, 16, 17], [1, 1, 1], [2**40] * 3)),
    ],
)
@pytest.mark.parametrize("kind", ["tensorstore", "zarr", "cached"])
def test_a_record_at_odds_with_itself_or_its_objects_is_refused(store, tmp_path, kind, changes):
    root, lines = store
    cache = CacheConfig(folder=str(tmp_path)) if kind == "cached" else None
    healthy = read_whole_manifest(str(root), "toy").cases[0]
    open_reader(str(root), cache=cache).image(healthy)
    open_reader(str(root), cache=cache).label(healthy)
    path = root / "toy/manifest.jsonl"
    whole = path.read_bytes()
    case = json.loads(lines[1])
    if "shape" in changes:
        case["geometry"] |= changes
    else:
        case |= changes
    path.write_bytes(resealed([lines[0], json.dumps(case).encode()]))

    def read() -> None:
        (record,) = read_whole_manifest(str(root), "toy").cases
        reader = open_reader(str(root), "zarr" if kind == "zarr" else "tensorstore", cache)
        image = value_or_refusal(lambda: reader.image(record), StoreError)
        label = value_or_refusal(lambda: reader.label(record), StoreError)
        region = Region("toy", record.id, 0, (0, 0, 0), (3, 4, 5))
        box = value_or_refusal(lambda: reader.region(record, region), StoreError)
        assert all(isinstance(found, StoreError) for found in (image, label, box))
        raise StoreError("all of it")

    assert isinstance(value_or_refusal(read, StoreError), StoreError)
    path.write_bytes(whole)


def test_any_record_is_read_or_refused_whether_its_seal_is_good_or_not(store):
    root, _ = store
    paths = (root / "toy/records/p0.jsonl", root / "toy/quarantine/bad.jsonl")
    pristine = [path.read_bytes() for path in paths]
    documents = [json.loads(data.splitlines()[0]) for data in pristine]
    readers = (
        lambda: read_records(str(root), "toy", ["p0"]),
        lambda: read_quarantine(str(root), "toy"),
    )

    @given(st.sampled_from([0, 1]), st.data())
    @examples(120)
    def read(number: int, more: st.DataObject) -> None:
        data = more.draw(damaged(pristine[number]))
        paths[number].write_bytes(data)
        if data.rstrip(b"\n") != pristine[number].rstrip(b"\n"):
            found = value_or_refusal(lambda: readers[number](), StoreError)
            assert isinstance(found, StoreError), "a bad seal is taken for a good one"
        paths[number].write_bytes(resealed([more.draw(damaged_json(documents[number]))]))
        value_or_refusal(lambda: readers[number](), StoreError)

    read()
    for path, data in zip(paths, pristine, strict=True):
        path.write_bytes(data)


@given(st.data())
@examples(60)
def test_damaged_surveys_count_as_none(store, data):
    root, _ = store
    entry = {"key": "k", "survey": {"id": "a", "shape": [1, 2, 3]}}
    (root / "toy/survey.jsonl").write_bytes(resealed([data.draw(damaged_json(entry))]))
    assert read_surveys(str(root), "toy") == {}


# -------------------------------------------------------------------------------------------------- models


def test_any_model_card_is_read_or_refused(tmp_path):
    card = ModelCard(
        kind="segmentation",
        network=NETWORK.model_dump(mode="json"),
        in_channels=1,
        classes={1: "box"},
        dataset="toy",
        modalities=("mr",),
        patch_size=(4, 8, 8),
        split=SplitConfig().model_dump(mode="json"),
        lineage=Lineage(config_hash="0", code_version="1", manifests={"toy": "0"}),
    )
    save_model(tmp_path, {"weight": torch.zeros(3)}, card)
    path = tmp_path / "model.json"
    document = read_sealed("model.json", path.read_bytes())  # no seal holds what is behind it up
    assert load_model(tmp_path)[0] == card

    @given(damaged_json(document))
    @examples(150)
    def read(data: bytes) -> None:
        path.write_bytes(data)
        found = value_or_refusal(lambda: load_model(tmp_path)[0], CheckpointError)
        if isinstance(found, ModelCard):
            value_or_refusal(lambda: network_config(found), CheckpointError)

    read()
