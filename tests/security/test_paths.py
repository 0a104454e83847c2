"""Names and links that lead elsewhere, and files without end: nothing outside is read, written or waited for.

Archives have their own tests (`tests/s3/test_tar.py`), bad images theirs (`tests/bad_inputs.py`).
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from hssl_dist import dicom, files
from hssl_dist.config.evaluate import EvaluateConfig
from hssl_dist.config.parts import SplitConfig, TrackingConfig
from hssl_dist.console import Console
from hssl_dist.datasets import discover
from hssl_dist.datasets.inputs import find_inputs
from hssl_dist.errors import ConfigError, HsslError, MissingError, StoreError
from hssl_dist.jobs import evaluate
from hssl_dist.networks.weights import load_model
from hssl_dist.records import CaseRecord, StoredObject
from hssl_dist.sampling.split_files import read_fixed_split
from hssl_dist.sampling.splits import split_manifest
from hssl_dist.store import read_manifest, write_manifest
from hssl_dist.tracking import fetch_model
from tests.s3.tars import tar
from tests.spoiling import list_case, write_case, write_dataset
from tests.tiny_model import save_tiny_model, write_scan
from tests.tiny_store import write_blobs

LEADING_OUT = (
    *("../secret.nii.gz", "imagesTr/../../secret.nii.gz", "/etc/secret.nii.gz", "..\\..\\secret.nii.gz"),
    *("imagesTr\\..\\..\\secret.nii.gz", "\\\\server\\share\\secret.nii.gz", "file:///etc/secret.nii.gz"),
    *("s3://bucket/secret.nii.gz", "s3+https://evil.example/bucket/secret.nii.gz", "imagesTr/a\0.nii.gz"),
    "imagesTr/../../x.tar!/secret.nii.gz",
)
ENDLESS: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a link to an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
}


def instead(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    ENDLESS[kind](path)


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


# ---------------------------------------------------------------------------------------------- descriptions


@pytest.mark.parametrize("part", ["image", "label"])
@pytest.mark.parametrize("path", LEADING_OUT, ids=ascii)
def test_a_list_of_cases_names_nothing_outside(tmp_path: Path, path: str, part: str) -> None:
    config = write_dataset(tmp_path / "data/msd", "msd")
    own = {"image": "imagesTr/healthy-0.nii.gz", "label": "labelsTr/healthy-0.nii.gz"}
    list_case(tmp_path / "data/msd", **(own | {part: path}))
    with pytest.raises(ConfigError, match="outside of the dataset") as caught:
        discover(config, str(tmp_path / "data"))
    one_line(caught.value)


@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.parametrize("layout", ["msd", "nnunet"])
def test_a_description_without_end_is_refused(tmp_path: Path, layout: str, kind: str) -> None:
    config = write_dataset(tmp_path / layout, layout)
    instead(tmp_path / layout / "dataset.json", kind)
    with pytest.raises(ConfigError, match=r"dataset\.json cannot be read: ") as caught:
        discover(config, str(tmp_path))
    one_line(caught.value)


def test_a_description_of_many_megabytes_is_refused(tmp_path: Path) -> None:
    config = write_dataset(tmp_path / "msd", "msd")
    with (tmp_path / "msd/dataset.json").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(ConfigError, match=r"dataset\.json has more than 64 MiB"):
        discover(config, str(tmp_path))


@pytest.mark.parametrize("kind", ["a pipe", "a link to an endless device"])
def test_names_of_inputs_do_not_wait_for_a_description(tmp_path: Path, kind: str) -> None:
    write_scan(tmp_path / "scans/a.nii.gz")
    instead(tmp_path / "scans/dataset.json", kind)
    with pytest.raises(ConfigError, match=r"dataset\.json cannot be read: "):
        find_inputs(str(tmp_path / "scans"), "auto")


def test_a_dicom_tree_with_a_pipe_is_walked(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "IM1")
    (tmp_path / "IM2").symlink_to("/dev/zero")
    found = dict(dicom.headers(files.walk(str(tmp_path))))
    assert all(isinstance(header, HsslError) or header is None for header in found.values())


def test_names_of_files_become_names_of_objects_inside_the_store(tmp_path: Path) -> None:
    config = write_dataset(tmp_path / "folder", "folder")
    names = ("a\\..\\..\\evil", "-rf", "$(touch evil)", "a;b", "CON", "nul", "a\u202eb", "%2e%2e%2fevil")
    for name in names:
        write_case(tmp_path / "folder", "folder", name)
    ids = [case.id for case in discover(config, str(tmp_path)).cases]
    assert len(ids) == len(names) + 3
    for identity in ids:
        assert identity.isascii()
        assert not set(identity) & set("/\\\0\n$;()% ")
        assert identity[0].isalnum()


# --------------------------------------------------------------------------------------------------- archives


@pytest.mark.parametrize("name", ["T/..\\..\\evil", "T/C:\\evil", "T/CON", "T/a\x01b"], ids=ascii)
def test_odd_names_in_an_archive_are_names(tmp_path: Path, name: str) -> None:
    """A backslash is a letter here: nothing is unpacked, so no name becomes a path."""
    (tmp_path / "a.tar").write_bytes(tar([(name, b"inside"), ("T/plain", b"x")]))
    before = sorted(tmp_path.parent.rglob("evil*"))
    root = files.archive_root(f"{tmp_path}/a.tar")
    assert sorted(files.walk(root)) == sorted([f"{root}/{name.removeprefix('T/')}", f"{root}/plain"])
    assert files.read(files.join(root, name.removeprefix("T/"))) == b"inside"
    assert sorted(tmp_path.parent.rglob("evil*")) == before


def test_an_unpacked_archive_is_this_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "a.tgz").write_bytes(gzip.compress(tar([("T/a", b"x")])))
    files.archive_root(f"{tmp_path}/a.tgz")
    (folder,) = tmp_path.glob("hssl-scratch-*")
    (unpacked,) = folder.glob("*.tar")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(unpacked.stat().st_mode) == 0o600


# --------------------------------------------------------------------------------------------- stores, splits


def outside(record: CaseRecord, path: str) -> CaseRecord:
    objects = (*record.objects, StoredObject(path=path, size_bytes=1, sha256="0" * 64))
    return record.model_copy(update={"objects": objects})


@pytest.mark.parametrize(
    "path",
    [
        "../../secret",
        "/etc/passwd",
        "p0.zarr/../../secret",
        "p1.zarr/0/zarr.json",
        "p0.zarr//etc",
        "s3://b/a",
        "\0",
    ],
    ids=ascii,
)
def test_a_manifest_names_nothing_outside_of_its_cases(tmp_path: Path, path: str) -> None:
    """Sealed as by its maker: the seal says who wrote it no more than a checksum does."""
    root = str(tmp_path / "store")
    manifest = write_blobs(root)
    write_manifest(root, manifest.header, [outside(manifest.cases[0], path), *manifest.cases[1:]])
    with pytest.raises(StoreError, match="is outside of its case") as caught:
        read_manifest(root, "blobs")
    one_line(caught.value)


@pytest.mark.parametrize("name", ["..", "../secret", "/etc", "a/b", "a\\b", "a\0b", ".hidden", ""], ids=ascii)
def test_names_of_datasets_and_cases_stay_inside_the_store(tmp_path: Path, name: str) -> None:
    root = str(tmp_path / "store")
    manifest = write_blobs(root)
    with pytest.raises(StoreError, match="cannot name an object"):
        read_manifest(root, name)
    write_manifest(root, manifest.header, [manifest.cases[0].model_copy(update={"id": name})])
    with pytest.raises(StoreError, match="cannot name an object"):
        read_manifest(root, "blobs")


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_split_file_without_end_is_refused(tmp_path: Path, kind: str) -> None:
    instead(tmp_path / "split.json", kind)
    with pytest.raises(ConfigError, match=r"split\.json cannot be read: ") as caught:
        read_fixed_split(str(tmp_path / "split.json"), "blobs", ["p1"])
    one_line(caught.value)


def test_names_in_a_split_file_are_compared_and_never_opened(tmp_path: Path) -> None:
    manifest = write_blobs(str(tmp_path / "store"))
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": ["../../etc/passwd", "/dev/zero", "p0\0"]}))
    with pytest.raises(ConfigError, match="without a labelled case in dataset 'blobs'") as caught:
        split_manifest(manifest, SplitConfig(file=str(path)))
    one_line(caught.value)


# ----------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_model_without_end_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    folder = Path(save_tiny_model(tmp_path / "model"))
    instead(folder / name, kind)
    with pytest.raises(HsslError) as caught:
        load_model(fetch_model(TrackingConfig(), str(folder)).folder)
    one_line(caught.value)


def test_a_card_that_names_a_dataset_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    model = save_tiny_model(tmp_path / "model", dataset="../outside")
    shutil.copytree(Path(model), tmp_path / "outside")
    values = {
        "model": model,
        "store": {"url": f"{tmp_path}/store"},
        "output": f"{tmp_path}/out",
        "runs": f"{tmp_path}/runs",
        "threads": 1,
    }
    with pytest.raises(HsslError) as caught:
        evaluate.run(EvaluateConfig.model_validate(values), Console(io.StringIO()))
    assert "'../outside' cannot name an object" in one_line(caught.value)


# -------------------------------------------------------------------------------------------- what is written


def test_a_link_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_bytes(b"theirs")
    (tmp_path / "ours").symlink_to(tmp_path / "theirs")
    files.write(str(tmp_path / "ours"), b"ours")
    assert (tmp_path / "theirs").read_bytes() == b"theirs"
    assert not (tmp_path / "ours").is_symlink()


def test_an_archive_is_only_read(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar([("T/a", b"x")]))
    for url in (f"{tmp_path}/a.tar!/T/a", f"{tmp_path}/a.tar!/../../evil"):
        with pytest.raises(ConfigError, match="is in an archive, which is only read"):
            files.write(url, b"evil")
    with pytest.raises((MissingError, FileNotFoundError)):
        files.read(f"{tmp_path}/a.tar!/../a.tar")
