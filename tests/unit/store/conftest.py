"""A small store with cases of every kind: thin, odd-sided, two channels, several shards, unlabelled."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from s3fs import S3FileSystem
from zarr.core.sync import sync

from hssl_dist import files
from hssl_dist.config.preprocess import StorageConfig
from hssl_dist.records import CaseRecord, Geometry, Intensity, ManifestHeader, Shape, Volume
from hssl_dist.store import write_manifest
from hssl_dist.store.writer import write_case
from tests.s3.server import S3Server

CLASSES = {1: "anterior", 2: "posterior"}
STORAGE = StorageConfig(chunk=(8, 8, 8), shard=(16, 16, 16))


@dataclass(frozen=True)
class Stored:
    """A case as it went in, and its record."""

    volume: Volume
    record: CaseRecord


def make_volume(shape: Shape, channels: int = 1, labelled: bool = True, seed: int = 0) -> Volume:
    rng = np.random.default_rng(seed)
    geometry = Geometry(
        original_shape=(shape[2], shape[1], shape[0]),
        original_affine=tuple(tuple(row) for row in np.diag([0.8, 0.9, 2.5, 1.0]).tolist()),
        oriented_shape=shape,
        oriented_spacing_mm=(2.5, 0.9, 0.8),
        crop_start=(0, 0, 0),
        crop_stop=shape,
        shape=shape,
        spacing_mm=(2.5, 0.9, 0.8),
    )
    image = rng.normal(size=(channels, *shape)).astype(np.float32)
    label = rng.integers(0, 3, shape, dtype=np.uint8) if labelled else None
    return Volume(image, label, geometry.spacing_mm, ("mr",) * channels, geometry)


def make_record(case_id: str, volume: Volume) -> CaseRecord:
    intensities = tuple(
        Intensity(
            minimum=0.0,
            maximum=900.0,
            mean=100.0,
            std=20.0,
            percentile_00_5=1.0,
            percentile_99_5=800.0,
            offset=100.0,
            scale=20.0,
            background=-5.0 - channel,
        )
        for channel in range(len(volume.modalities))
    )
    return CaseRecord(
        id=case_id,
        dataset="toy",
        patient=case_id,
        task="toy",
        group="toys",
        split="train",
        labelled=volume.label is not None,
        modalities=volume.modalities,
        geometry=volume.geometry,
        intensities=intensities,
        foreground={"any": ((0, 1, 1),)},
        voxels={"any": 1},
        sources=(),
        key=f"key of {case_id}",
        objects=(),
    )


HEADER = ManifestHeader(
    dataset="toy",
    task="toy",
    group="toys",
    classes=CLASSES,
    channels=("mr",),
    recipe={"version": 1},
    recipe_hash="0" * 64,
    code_version="1",
)


@pytest.fixture(scope="session")
def store_case() -> Callable[..., Stored]:
    """Writes a volume of random values as a case: `(root, case_id, shape, channels, labelled, storage)`."""

    def store(
        root: str | Path,
        case_id: str,
        shape: Shape,
        channels: int = 1,
        labelled: bool = True,
        storage: StorageConfig = STORAGE,
        seed: int = 0,
    ) -> Stored:
        volume = make_volume(shape, channels, labelled, seed)
        record = write_case(str(root), make_record(case_id, volume), volume, CLASSES, storage)
        return Stored(volume, record)

    return store


@pytest.fixture
def header() -> ManifestHeader:
    """A manifest header of the dataset `toy`."""
    return HEADER


@pytest.fixture(scope="session")
def _pristine(
    tmp_path_factory: pytest.TempPathFactory, store_case: Callable[..., Stored]
) -> tuple[Path, dict[str, Stored]]:
    root = tmp_path_factory.mktemp("pristine")
    cases = {
        "thin": store_case(root, "thin", (2, 19, 33), seed=1),
        "shards": store_case(root, "shards", (40, 37, 18), seed=2),
        "two channels": store_case(root, "two channels", (5, 9, 30), channels=2, seed=3),
        "unlabelled": store_case(root, "unlabelled", (17, 16, 15), labelled=False, seed=4),
    }
    write_manifest(str(root), HEADER, [case.record for case in cases.values()])
    return root, cases


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def storage(request: pytest.FixtureRequest) -> str:
    """A kind of storage a store can be on; for S3 the environment leads to the tests' server."""
    if request.param == "s3":
        request.getfixturevalue("s3_readers")
    return str(request.param)


@pytest.fixture
def s3_readers(s3_environment: S3Server) -> Iterator[S3Server]:
    """The S3 server, with zarr-python's clients closed afterwards, which it leaves open."""
    yield s3_environment
    for fs in list(S3FileSystem._cache.values()):
        if fs.asynchronous and fs._s3 is not None:
            sync(fs._s3.close())
            fs._s3 = None


@pytest.fixture(scope="session")
def _uploaded() -> dict[str, str]:
    """Where the read-only stores are, by storage; filled by the tests that need them."""
    return {}


@pytest.fixture
def kept_store(
    storage: str, _pristine: tuple[Path, dict[str, Stored]], _uploaded: dict[str, str]
) -> tuple[str, dict[str, Stored]]:
    """The four cases of `toy_store` on every kind of storage, for tests that change nothing."""
    root, cases = _pristine
    if storage == "local":
        return str(root), cases
    if storage not in _uploaded:
        _uploaded[storage] = upload(root, new_root(storage))
    return _uploaded[storage], cases


@pytest.fixture
def own_store(
    storage: str, tmp_path: Path, _pristine: tuple[Path, dict[str, Stored]]
) -> tuple[str, dict[str, Stored]]:
    """The same, a copy for each test."""
    root, cases = _pristine
    return upload(root, str(tmp_path / "own") if storage == "local" else new_root(storage)), cases


def new_root(storage: str) -> str:
    """A URL of memory or S3 where nothing is."""
    if storage == "memory":
        return f"memory://stores/{secrets.token_hex(6)}"
    bucket = f"s3://test-{secrets.token_hex(6)}"
    files.filesystem(bucket)[0].mkdir(bucket)
    return f"{bucket}/store"


def upload(folder: Path, root: str) -> str:
    """Copy a store; returns its URL."""
    for url in files.walk(str(folder)):
        files.write(files.join(root, files.relative(url, str(folder))), files.read(url))
    return root


@pytest.fixture
def toy_store(tmp_path: Path, _pristine: tuple[Path, dict[str, Stored]]) -> tuple[str, dict[str, Stored]]:
    """A store of four cases with its manifest, and the cases by id; each test has its own copy."""
    root, cases = _pristine
    return str(shutil.copytree(root, tmp_path / "store")), cases
