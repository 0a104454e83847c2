"""Written cases: valid OME-Zarr, reproducible, whole or absent."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from ome_zarr_models.v05.image import Image
from ome_zarr_models.v05.image_label import ImageLabel
from ome_zarr_models.v05.labels import Labels

from hssl_dist import files
from hssl_dist.config.preprocess import StorageConfig
from hssl_dist.errors import CorruptError, InputError, StoreError
from hssl_dist.store import read_records, remove_case, verify
from hssl_dist.store.encoding import encode_case
from hssl_dist.store.writer import write_case

CLASSES = {1: "anterior", 2: "posterior"}


def test_every_case_is_a_valid_ome_zarr_image(toy_store):
    root, cases = toy_store
    for case_id, case in cases.items():
        group = zarr.open_group(f"{root}/toy/{case_id}.zarr", mode="r", zarr_format=3)
        image = Image.from_zarr(group)
        multiscale = image.attributes.ome.multiscales[0]
        assert [(axis.name, axis.type, axis.unit) for axis in multiscale.axes] == [
            ("c", "channel", None),
            ("z", "space", "millimeter"),
            ("y", "space", "millimeter"),
            ("x", "space", "millimeter"),
        ]
        transform = multiscale.datasets[0].coordinateTransformations[0]
        assert transform.scale == [1.0, 2.5, 0.9, 0.8]
        if case.volume.label is None:
            assert "labels" not in group
            continue
        assert Labels.from_zarr(group["labels"]).attributes.ome.labels == ["segmentation"]
        label = ImageLabel.from_zarr(group["labels/segmentation"]).attributes.ome
        assert label.multiscales[0].datasets[0].coordinateTransformations[0].scale == [2.5, 0.9, 0.8]
        assert label.image_label.source.image == "../../"
        names = {item.label_value: item.name for item in label.image_label.properties}
        assert names == CLASSES
        assert len({item.rgba for item in label.image_label.colors}) == len(CLASSES)
        np.testing.assert_array_equal(group["labels/segmentation/0"][...], case.volume.label)


def test_arrays_are_sharded_checksummed_and_say_their_scale(toy_store):
    root, _ = toy_store
    image = json.loads(Path(root, "toy/shards.zarr/0/zarr.json").read_text())
    assert image["attributes"] == {"scale_factor": 2**-10, "add_offset": 0.0}
    assert image["dimension_names"] == ["c", "z", "y", "x"]
    assert image["chunk_grid"]["configuration"]["chunk_shape"] == [1, 16, 16, 9]
    sharding = image["codecs"][0]["configuration"]
    assert sharding["chunk_shape"] == [1, 8, 8, 9]
    assert [codec["name"] for codec in sharding["codecs"]] == ["bytes", "zstd", "crc32c"]
    assert [codec["name"] for codec in sharding["index_codecs"]] == ["bytes", "crc32c"]
    label = json.loads(Path(root, "toy/shards.zarr/labels/segmentation/0/zarr.json").read_text())
    sharding = label["codecs"][0]["configuration"]
    assert [codec["name"] for codec in sharding["codecs"]] == ["bytes", "zstd", "crc32c"]


def test_an_empty_volume_still_has_all_its_objects(tmp_path, store_case):
    case = store_case(tmp_path, "case", (20, 20, 20))
    volume = dataclasses.replace(case.volume, image=np.zeros((1, 20, 20, 20), np.float32))
    record = write_case(str(tmp_path), case.record, volume, CLASSES, StorageConfig())
    assert [item.path for item in record.objects] == [
        "case.zarr/0/c/0/0/0/0",
        "case.zarr/0/zarr.json",
        "case.zarr/labels/segmentation/0/c/0/0/0",
        "case.zarr/labels/segmentation/0/zarr.json",
        "case.zarr/labels/segmentation/zarr.json",
        "case.zarr/labels/zarr.json",
        "case.zarr/zarr.json",
    ]


def test_equal_input_gives_equal_bytes(tmp_path, store_case):
    case = store_case(tmp_path, "case", (33, 40, 41))
    first = encode_case("case", case.volume, CLASSES, StorageConfig())
    assert encode_case("case", case.volume, CLASSES, StorageConfig()) == first


def test_the_record_lists_what_is_there(tmp_path, store_case):
    case = store_case(tmp_path, "case", (5, 6, 7))
    assert read_records(str(tmp_path), "toy", ["case", "other"]) == {"case": case.record}
    written = [url for url in files.walk(f"{tmp_path}/toy") if "/records/" not in url]
    assert written == [
        f"{tmp_path}/toy/{item.path}" for item in sorted(case.record.objects, key=lambda o: o.path)
    ]
    for item in case.record.objects:
        assert files.sha256(f"{tmp_path}/toy/{item.path}") == (item.sha256, item.size_bytes)


def test_writing_a_case_anew_leaves_nothing_of_the_old_one(tmp_path, store_case):
    store_case(tmp_path, "case", (40, 40, 40))
    case = store_case(tmp_path, "case", (5, 6, 7), labelled=False)
    assert read_records(str(tmp_path), "toy", ["case"]) == {"case": case.record}
    assert len(list(files.walk(f"{tmp_path}/toy/case.zarr"))) == len(case.record.objects) == 3


def test_removing_a_case(tmp_path, store_case):
    store_case(tmp_path, "case", (5, 6, 7))
    kept = store_case(tmp_path, "kept", (5, 6, 7))
    remove_case(str(tmp_path), "toy", "case")
    assert read_records(str(tmp_path), "toy", ["case", "kept"]) == {"kept": kept.record}
    assert not Path(tmp_path, "toy/case.zarr").exists()


def test_a_volume_that_cannot_be_stored_changes_nothing(tmp_path, store_case):
    case = store_case(tmp_path, "case", (5, 6, 7))
    image = case.volume.image.copy()
    image[0, 1, 1, 1] = np.nan
    volume = dataclasses.replace(case.volume, image=image)
    with pytest.raises(InputError, match="NaN"):
        write_case(str(tmp_path), case.record, volume, CLASSES, StorageConfig())
    assert read_records(str(tmp_path), "toy", ["case"]) == {"case": case.record}


FULL_DISK = """
import resource, signal, sys
import numpy as np
from hssl_dist.config.preprocess import StorageConfig
from hssl_dist.errors import StoreError
from hssl_dist.records import CaseRecord, Volume
from hssl_dist.store.writer import write_case

root, record = sys.argv[1], CaseRecord.model_validate_json(sys.argv[2])
image = np.random.default_rng(0).normal(size=(1, *record.shape)).astype(np.float32)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
volume = Volume(image, None, (1.0, 1.0, 1.0), ("mr",), record.geometry)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    write_case(root, record, volume, {}, StorageConfig())
except StoreError as error:
    print(error)
"""


def test_a_full_disk_is_one_clear_error_and_no_case(tmp_path, store_case):
    case = store_case(tmp_path / "elsewhere", "case", (40, 40, 40), labelled=False)
    root = str(tmp_path / "store")
    said = subprocess.run(
        [sys.executable, "-c", FULL_DISK, root, case.record.to_json()],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert said == (
        f"case 'case' of 'toy' could not be written to {root}/toy: [Errno 27] File too large; make room "
        "there, or raise the quota or the limit on file sizes, and run it again: what is committed is kept\n"
    )
    assert read_records(root, "toy", ["case"]) == {}


def test_verify_finds_what_is_lost_or_damaged(toy_store):
    root, cases = toy_store
    assert verify(root, "toy") == sum(len(case.record.objects) for case in cases.values())
    label = Path(root, "toy/thin.zarr/labels/segmentation/zarr.json")
    text = label.read_text()
    label.write_text(text.replace("anterior", "anteriot"))
    with pytest.raises(CorruptError, match=f"{label} does not have the recorded SHA-256"):
        verify(root, "toy")
    label.unlink()
    with pytest.raises(CorruptError, match=f"{label} is missing"):
        verify(root, "toy")


def test_case_ids_cannot_leave_the_store(tmp_path, store_case):
    with pytest.raises(StoreError, match=r"the name '../case' cannot name an object"):
        store_case(tmp_path, "../case", (5, 6, 7))
    assert list(tmp_path.iterdir()) == []
