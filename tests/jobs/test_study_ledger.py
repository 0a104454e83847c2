"""Who has looked at which patients: two studies at once, a second look, lists of before, object storage."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hssl_dist import files
from hssl_dist.config.evaluate import EvaluateConfig
from hssl_dist.config.study import StudyConfig
from hssl_dist.console import Console
from hssl_dist.errors import ConfigError, StorageError
from hssl_dist.jobs import evaluate
from hssl_dist.jobs.looks import Look, read_looks, write_look
from hssl_dist.jobs.study_ledger import Ledger
from hssl_dist.store import read_manifests
from tests import tiny_study
from tests.tiny_model import save_tiny_model

STUDIES = 8


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store."""
    folder = tmp_path_factory.mktemp("ledger")
    tiny_study.write_store(folder)
    return folder


@pytest.fixture
def make(store: Path, tmp_path: Path) -> Callable[..., tuple[StudyConfig, Ledger]]:
    """A study of blobs alone and its ledger, below the test's own folder of runs."""

    def make(name: str, **changes: Any) -> tuple[StudyConfig, Ledger]:
        values = {"tasks": tiny_study.BLOBS_ALONE, "arms": ["scratch"], "part": "test"}
        config = tiny_study.config(store, name=name, **values | {"runs": str(tmp_path / "runs")} | changes)
        return config, Ledger(config, read_manifests(config.store.url, tiny_study.TASKS))

    return make


def studies(config: StudyConfig) -> list[str]:
    return [look.study for look in read_looks(config.runs, "blobs")]


def test_of_two_studies_that_pretrain_at_once_one_looks(make: Callable[..., Any]) -> None:
    config, first = make("first")
    _, second = make("second")
    first.check()
    second.check()
    first.note()
    with pytest.raises(ConfigError, match="were scored as test patients by the study 'first' of another"):
        second.note()
    assert studies(config) == ["first"]
    first.check()
    first.note()
    assert studies(config) == ["first"]


def test_of_studies_that_note_at_the_same_moment_at_most_one_looks(make: Callable[..., Any]) -> None:
    ledgers = [make(f"s{number}") for number in range(STUDIES)]
    together = threading.Barrier(STUDIES, timeout=60)
    looked: list[str] = []

    def attempt(config: StudyConfig, ledger: Ledger) -> None:
        together.wait()
        try:
            ledger.note()
        except ConfigError:
            return
        looked.append(config.name)

    in_threads(attempt, ledgers)
    assert len(looked) <= 1
    assert studies(ledgers[0][0]) == looked


def test_no_look_is_lost_when_several_are_noted_at_the_same_moment(make: Callable[..., Any]) -> None:
    ledgers = [make(f"s{number}", part="validation") for number in range(STUDIES)]
    together = threading.Barrier(STUDIES, timeout=60)

    def attempt(_: StudyConfig, ledger: Ledger) -> None:
        together.wait()
        ledger.note()

    in_threads(attempt, ledgers)
    assert sorted(studies(ledgers[0][0])) == [f"s{number}" for number in range(STUDIES)]


def in_threads(work: Callable[..., None], arguments: list[tuple[StudyConfig, Ledger]]) -> None:
    threads = [threading.Thread(target=work, args=each) for each in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


def test_a_study_that_has_looked_goes_on_whoever_looked_since(make: Callable[..., Any]) -> None:
    _, first = make("first")
    _, second = make("second", look_again=True)
    first.note()
    second.note()
    first.check()
    assert first.summary()["blobs"] == {"patients": 2, "looks": 2}
    _, third = make("third")
    with pytest.raises(ConfigError, match=r"by the study '(first|second)' of another config"):
        third.check()


def test_the_list_of_before_counts(make: Callable[..., Any]) -> None:
    config, first = make("first")
    first.note()
    (look,) = read_looks(config.runs, "blobs")
    files.remove(files.join(config.runs, "reporting", "blobs"))
    entry = look.model_dump(mode="json", exclude={"by"})
    assert set(entry) == {"study", "config", "part", "patients", "first_at"}
    files.write(files.join(config.runs, "reporting", "blobs.json"), json.dumps([entry]).encode())
    first.check()
    first.note()
    assert read_looks(config.runs, "blobs") == [look]
    _, second = make("second")
    with pytest.raises(ConfigError, match="by the study 'first' of another config"):
        second.check()


def test_an_evaluation_is_no_obstacle_but_is_told(
    make: Callable[..., Any], store: Path, tmp_path: Path
) -> None:
    config, ledger = make("reports")
    (look,) = noted(ledger, config)
    split = {"train": [], "validation": [], "test": list(look.patients), "config": {}}
    model = save_tiny_model(tmp_path / "model", dataset="blobs", split=split, recipe=None)

    def scored(**changes: Any) -> None:
        values = {
            "model": model,
            "store": config.store,
            "runs": str(tmp_path / "other"),
            "output": str(tmp_path / "scores"),
            "tracking": config.tracking,
            "intervals": {"resamples": 100},
            "threads": 1,
        }
        evaluate.run(EvaluateConfig.model_validate(values | changes), Console(io.StringIO()))

    scored()
    scored()  # the same again is no other look
    scored(runs=None)
    (seen,) = read_looks(str(tmp_path / "other"), "blobs")
    assert (seen.by, seen.part, seen.study, seen.patients) == ("evaluate", "test", model, look.patients)
    later = make("later", runs=str(tmp_path / "other"))[1]
    later.check()
    assert later.summary()["blobs"] == {"patients": 2, "looks": 0, "evaluated": [model]}
    later.note()
    assert later.summary()["blobs"] == {"patients": 2, "looks": 1, "evaluated": [model]}
    write_look(config.runs, "blobs", seen.model_copy(update={"first_at": "2999-01-01T00:00:00+00:00"}))
    assert ledger.summary()["blobs"] == {"patients": 2, "looks": 1}  # it came after this study's own


def noted(ledger: Ledger, config: StudyConfig) -> list[Look]:
    ledger.note()
    return read_looks(config.runs, "blobs")


def test_a_ledger_that_cannot_be_written_is_told_in_a_line(make: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where the folder should be")
    _, ledger = make("first")
    with pytest.raises(
        StorageError, match=r"cannot be written: .*choose another place, and run it again"
    ) as caught:
        ledger.note()
    assert len(str(caught.value).splitlines()) == 1


def test_on_object_storage_too(make: Callable[..., Any], s3_bucket: str) -> None:
    runs = f"{s3_bucket}/runs"
    config, first = make("first", runs=runs)
    _, second = make("second", runs=runs)
    first.note()
    first.note()
    with pytest.raises(ConfigError, match="by the study 'first' of another config"):
        second.note()
    assert studies(config) == ["first"]
