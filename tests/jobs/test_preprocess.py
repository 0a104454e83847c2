"""Preprocessing on Ray: what is done, what is done again, what is refused. Volumes are tiny and on disk."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from hssl_dist import files
from hssl_dist.config.preprocess import DatasetConfig, PreprocessConfig
from hssl_dist.console import Console
from hssl_dist.errors import CorruptError, StoreError, TooManyFailuresError, WorkerError
from hssl_dist.imaging import write_nifti
from hssl_dist.jobs import preprocess
from hssl_dist.jobs.batches import Workers, batched
from hssl_dist.jobs.preprocess_cases import survey_cases
from hssl_dist.records import Case
from hssl_dist.store import open_reader, read_manifest, read_quarantine, verify
from tests.restoring import restore

pytestmark = pytest.mark.usefixtures("ray_cluster")

CASES = 11


def write_scan(root: Path, number: int, seed: int | None = None) -> None:
    """An MR-like volume with a bright, labelled box in it."""
    rng = np.random.default_rng(number if seed is None else seed)
    shape = (14 + number % 3, 12, 6 + number % 2)
    label = np.zeros(shape, np.uint8)
    label[3:9, 3:9, 1:5] = 1
    image = (rng.normal(200.0, 20.0, shape) + 150.0 * label).astype(np.int16)
    affine = np.diag([1.5, 1.5, 3.0, 1.0])
    write_nifti(root / f"images/p{number // 2:02}_{number % 2}.nii.gz", image, affine)
    write_nifti(root / f"labels/p{number // 2:02}_{number % 2}.nii.gz", label, affine)


def name_of(number: int) -> str:
    return f"p{number // 2:02}_{number % 2}"


@pytest.fixture
def challenge(tmp_path: Path) -> Path:
    """A challenge of eleven labelled scans of six patients in plain folders."""
    root = tmp_path / "challenge"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for number in range(CASES):
        write_scan(root, number)
    return root


@pytest.fixture
def configure(challenge: Path, tmp_path: Path) -> Callable[..., PreprocessConfig]:
    """The challenge's config; keyword arguments are of the job, `group` of the dataset."""

    def build(store: str = "store", group: str = "boxes", **job: object) -> PreprocessConfig:
        dataset = DatasetConfig(
            name="toy",
            layout="folder",
            modality="mr",
            source="challenge",
            group=group,
            patient_pattern=r"^(p\d+)",
            classes={1: "box"},
        )
        return PreprocessConfig.model_validate(
            {
                "store": {"url": str(tmp_path / store)},
                "source_root": str(tmp_path),
                "datasets": (dataset,),
                **job,
            }
        )

    return build


def preprocessed(config: PreprocessConfig) -> dict:
    """Run the job; its summary of the one dataset."""
    outcome = preprocess.run(config, Console(io.StringIO()))
    return outcome.summary["datasets"]["toy"]


def snapshot(root: str) -> dict[str, tuple[int, bytes]]:
    """Time of writing and bytes of every file below a folder."""
    return {url: (Path(url).stat().st_mtime_ns, files.read(url)) for url in files.walk(root)}


def manifest_bytes(config: PreprocessConfig) -> bytes:
    return files.read(f"{config.store.url}/toy/manifest.jsonl")


def test_every_case_is_committed_with_what_training_needs(configure, challenge):
    config = configure()
    summary = preprocessed(config)
    assert {key: summary[key] for key in ("cases", "written", "unchanged", "quarantined", "removed")} == {
        "cases": CASES,
        "written": CASES,
        "unchanged": 0,
        "quarantined": [],
        "removed": [],
    }
    manifest = read_manifest(config.store.url, "toy")
    assert summary["manifest_sha256"] == manifest.sha256
    assert (manifest.header.task, manifest.header.group) == ("toy", "boxes")
    assert manifest.header.classes == {1: "box"}
    assert verify(config.store.url, "toy") == 7 * CASES
    assert summary["bytes"] == sum(item.size_bytes for record in manifest.cases for item in record.objects)

    reader = open_reader(config.store.url)
    for number, record in enumerate(manifest.cases):
        assert (record.id, record.patient, record.labelled) == (name_of(number), f"p{number // 2:02}", True)
        assert [source.path for source in record.sources] == [
            f"images/{record.id}.nii.gz",
            f"labels/{record.id}.nii.gz",
        ]
        label = reader.label(record)
        assert record.voxels["1"] == np.count_nonzero(label) == 6 * 6 * 4
        assert all(label[voxel] == 1 for voxel in record.foreground["1"])
        restored = restore(label, record.geometry)
        np.testing.assert_array_equal(np.argwhere(restored).min(axis=0), [3, 3, 1])
        image = reader.image(record)[0]
        assert image[label == 1].mean() - image[label == 0].mean() > 1.0
    page = files.read(summary["report"]).decode()
    assert "toy" in page
    assert name_of(0) in page or "data:image/png;base64" in page


def test_doing_it_again_does_nothing(configure):
    config = configure()
    preprocessed(config)
    before = snapshot(config.store.url)
    summary = preprocessed(config)
    assert (summary["written"], summary["unchanged"]) == (0, CASES)
    assert snapshot(config.store.url) == before


def test_only_what_changed_is_done_again(configure, challenge):
    config = configure()
    preprocessed(config)
    before = snapshot(config.store.url)
    write_scan(challenge, 4, seed=100)
    (challenge / "images" / f"{name_of(7)}.nii.gz").unlink()
    (challenge / "labels" / f"{name_of(7)}.nii.gz").unlink()
    write_scan(challenge, CASES)
    summary = preprocessed(config)
    assert (summary["cases"], summary["written"], summary["removed"]) == (CASES, 2, [name_of(7)])
    after = snapshot(config.store.url)
    touched = {url.split("/toy/")[1].split("/")[0] for url in after if after[url] != before.get(url)}
    touched -= {"manifest.jsonl", "survey.jsonl", "report.html", "records"}
    assert touched == {f"{name_of(4)}.zarr", f"{name_of(CASES)}.zarr"}
    verify(config.store.url, "toy")

    fresh = configure(store="fresh")
    preprocessed(fresh)
    assert manifest_bytes(config) == manifest_bytes(fresh)


def test_a_case_that_comes_back_is_not_done_again(configure, challenge):
    config = configure()
    preprocessed(config)
    before = manifest_bytes(config)
    image = challenge / "images" / f"{name_of(3)}.nii.gz"
    data = image.read_bytes()
    image.unlink()
    label = challenge / "labels" / f"{name_of(3)}.nii.gz"
    label.rename(label.with_suffix(".away"))
    assert preprocessed(config)["removed"] == [name_of(3)]
    image.write_bytes(data)
    label.with_suffix(".away").rename(label)
    assert preprocessed(config)["written"] == 0
    assert manifest_bytes(config) == before


def test_a_new_group_only_changes_the_records(configure):
    config = configure()
    preprocessed(config)
    before = snapshot(config.store.url)
    summary = preprocessed(configure(group="renamed"))
    assert summary["written"] == 0
    assert {record.group for record in read_manifest(config.store.url, "toy").cases} == {"renamed"}
    after = snapshot(config.store.url)
    assert [url for url in after if ".zarr/" in url and after[url] != before[url]] == []
    fresh = configure(store="fresh", group="renamed")
    preprocessed(fresh)
    assert manifest_bytes(config) == manifest_bytes(fresh)


def test_another_spacing_writes_all_cases_anew(configure):
    config = configure()
    preprocessed(config)
    dataset = config.datasets[0].model_copy(update={"spacing_mm": (3.0, 3.0, 3.0)})
    assert preprocessed(config.model_copy(update={"datasets": (dataset,)}))["written"] == CASES
    verify(config.store.url, "toy")
    shapes = {record.shape for record in read_manifest(config.store.url, "toy").cases}
    assert {shape[1:] for shape in shapes} == {(6, 7), (6, 8)}


def test_a_bad_file_is_quarantined_once_and_released_when_mended(configure, challenge):
    bad = challenge / "images" / f"{name_of(5)}.nii.gz"
    good = bad.read_bytes()
    bad.write_bytes(good[: len(good) // 2])
    config = configure()
    summary = preprocessed(config)
    assert (summary["cases"], summary["written"]) == (CASES - 1, CASES - 1)
    [refused] = summary["quarantined"]
    assert refused["id"] == name_of(5)
    assert f"{name_of(5)}.nii.gz" in refused["reason"]
    assert read_quarantine(config.store.url, "toy")[name_of(5)].reason == refused["reason"]
    assert refused["reason"].split(": ")[-1] in files.read(summary["report"]).decode()

    before = snapshot(config.store.url)
    assert preprocessed(config)["quarantined"] == [refused]
    assert snapshot(config.store.url) == before

    bad.write_bytes(good)
    summary = preprocessed(config)
    assert (summary["cases"], summary["written"], summary["quarantined"]) == (CASES, 1, [])
    assert read_quarantine(config.store.url, "toy") == {}
    assert refused["reason"].split(": ")[-1] not in files.read(summary["report"]).decode()


def test_a_stored_case_that_turns_bad_leaves_the_store(configure, challenge):
    config = configure()
    preprocessed(config)
    (challenge / "images" / f"{name_of(5)}.nii.gz").write_bytes(b"no image at all")
    summary = preprocessed(config)
    assert (summary["cases"], summary["written"], summary["removed"]) == (CASES - 1, 0, [])
    assert [item["id"] for item in summary["quarantined"]] == [name_of(5)]
    assert not Path(config.store.url, "toy", f"{name_of(5)}.zarr").exists()
    assert not Path(config.store.url, "toy/records", f"{name_of(5)}.jsonl").exists()


def test_too_many_bad_files_fail_the_job_after_all_else_is_done(configure, challenge):
    for number in (1, 2, 3, 4):
        (challenge / "images" / f"{name_of(number)}.nii.gz").write_bytes(b"")
    config = configure()
    with pytest.raises(TooManyFailuresError) as caught:
        preprocessed(config)
    said = str(caught.value)
    assert said.startswith("toy: 4 of 11 cases (36%) are in quarantine (")
    assert said.endswith("; and 1 more); at most 10% may be; mend the files or raise max_failure_rate")
    assert len(read_manifest(config.store.url, "toy").cases) == CASES - 4
    assert preprocessed(configure(max_failure_rate=0.5))["written"] == 0


def test_no_readable_case_at_all(configure, challenge):
    for number in range(CASES):
        (challenge / "images" / f"{name_of(number)}.nii.gz").write_bytes(b"")
    config = configure(max_failure_rate=1.0)
    with pytest.raises(TooManyFailuresError, match=r"toy: 11 of 11 cases \(100%\) are in quarantine"):
        preprocessed(config)
    assert not Path(config.store.url, "toy/manifest.jsonl").exists()


def test_a_smaller_limit_quarantines_and_a_larger_one_releases(configure):
    config = configure(max_voxels=14 * 12 * 6, max_failure_rate=0.95)
    assert 0 < len(preprocessed(config)["quarantined"]) < CASES
    assert preprocessed(configure())["cases"] == CASES


def test_a_damaged_manifest_is_made_anew_from_the_records(configure):
    config = configure()
    preprocessed(config)
    good = manifest_bytes(config)
    Path(config.store.url, "toy/manifest.jsonl").write_bytes(good[:1000])
    stream = io.StringIO()
    outcome = preprocess.run(config, Console(stream))
    assert outcome.summary["totals"]["written"] == 0
    assert (
        "does not end in its seal; preprocess the dataset again; it is being made anew" in stream.getvalue()
    )
    assert manifest_bytes(config) == good


def test_a_store_of_before_records_were_sealed_is_not_written_anew(configure):
    config = configure()
    preprocessed(config)
    for record in Path(config.store.url, "toy/records").iterdir():
        record.rename(record.with_suffix(".json"))
    assert preprocessed(config)["written"] == 0


def test_a_damaged_case_is_written_anew_once_its_record_is_removed(configure):
    config = configure()
    preprocessed(config)
    good, dataset = manifest_bytes(config), Path(config.store.url, "toy")
    shard = next(path for path in (dataset / f"{name_of(3)}.zarr/0/c").rglob("*") if path.is_file())
    shard.unlink()
    with pytest.raises(
        CorruptError,
        match=f"{shard} is missing; remove its case's commit record and preprocess the dataset again",
    ):
        verify(config.store.url, "toy")
    (dataset / "records" / f"{name_of(3)}.jsonl").unlink()
    summary = preprocessed(config)
    assert (summary["written"], summary["unchanged"]) == (1, CASES - 1)
    assert verify(config.store.url, "toy") == 7 * CASES
    assert manifest_bytes(config) == good


def refuse(items: tuple[str, ...]) -> list[str]:
    raise StoreError(f"cannot write {items[0]}")


def test_errors_of_workers_are_raised_as_they_are(configure, challenge):
    with ExitStack() as stack:
        workers = Workers(configure().ray, Console(io.StringIO()), stack)
        with pytest.raises(StoreError, match=r"^cannot write a$"):
            list(workers.run(refuse, batched([("a", 1)])))
        image = str(challenge / "images" / f"{name_of(0)}.nii.gz")
        unforeseen = Case("toy", "odd", "odd", (image,), None, ("mr",))
        with pytest.raises(RuntimeError, match="case 'odd' of 'toy': TypeError"):
            list(workers.run(survey_cases, batched([(unforeseen, 1)]), {}, None))


def die(items: tuple[str, ...]) -> list[str]:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError(items)


def test_a_worker_that_is_killed_again_and_again_is_an_error_of_one_line(configure):
    with ExitStack() as stack:
        workers = Workers(configure().ray, Console(io.StringIO()), stack)
        with pytest.raises(
            WorkerError, match=r"^a Ray worker was lost \(.*\); what is committed is kept"
        ) as lost:
            list(workers.run(die, batched([("a", 1)])))
        assert "\n" not in str(lost.value)
