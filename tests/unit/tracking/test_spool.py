"""What waits in a run's folder: order, checksums, ownership."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hssl_dist import files
from hssl_dist.errors import BusyError, TrackingError
from hssl_dist.files.ownership import Ownership
from hssl_dist.tracking.operations import Artifact, End, Metrics, points, publication_of
from hssl_dist.tracking.spool import Entry, Identity, Spool, waiting

SERVER = "http://mlflow:5000"
DATA = b"a,b\n"


def entries(step: int) -> list[Entry]:
    artifact = Artifact(
        run="r", path="t/a.csv", size_bytes=len(DATA), sha256=hashlib.sha256(DATA).hexdigest()
    )
    return [
        Entry(Metrics(run="r", points=points(step, {"loss": 0.1 + step, "nan": float("nan")}, 5))),
        Entry(artifact, DATA),
        Entry(End(run="r", status="FINISHED", at_ms=9)),
    ]


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "run") if request.param == "local" else f"memory://{tmp_path.name}/run"


def test_what_is_appended_is_read_in_order_and_goes_when_removed(folder: str) -> None:
    spool = Spool(folder, SERVER)
    assert spool.numbers() == []
    assert not spool.waits()
    spool.append(entries(1))
    spool.append(entries(2))
    assert spool.numbers() == [1, 2]
    assert waiting(folder) == [folder] == waiting(folder.rpartition("/")[0])
    read = spool.read(1)
    assert [entry.operation.kind for entry in read] == ["metrics", "artifact", "end"]
    assert read[1].data == DATA
    metrics = read[0].operation
    assert isinstance(metrics, Metrics)
    assert (metrics.points[0].key, float(metrics.points[0].value), metrics.points[0].step) == ("loss", 1.1, 1)
    assert metrics.points[1].value == "nan"
    spool.remove(1)
    assert spool.numbers() == [2]
    spool.append(entries(3))
    assert spool.numbers() == [2, 3]
    spool.remove(2)
    spool.remove(3)
    assert list(files.walk(folder)) == []


def test_a_run_is_the_same_one_however_often_it_is_noted(folder: str) -> None:
    spool = Spool(folder, SERVER)
    assert spool.identity() is None
    identity = Identity(uuid="u" * 32, name="n", config_hash="c")
    spool.keep(identity)
    assert spool.identity() == identity
    assert identity.id == "local-" + "u" * 32
    assert identity.model_copy(update={"run_id": "m"}).id == "m"


def damaged_json(path: Path) -> None:
    content = json.loads(path.read_text())
    content["operations"][0]["points"][0][1] = "0.2"
    path.write_text(json.dumps(content))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def renamed(path: Path) -> None:
    """As a segment that was copied over another."""
    path.write_bytes((path.parent / "segment-00000001.json").read_bytes())


@pytest.mark.parametrize("damage", [damaged_json, cut_short, renamed])
def test_a_damaged_segment_is_named(tmp_path: Path, damage) -> None:
    spool = Spool(str(tmp_path), SERVER)
    spool.append(entries(1))
    spool.append(entries(2))
    damage(tmp_path / "tracking" / "segment-00000002.json")
    spool.read(1)
    with pytest.raises(TrackingError) as caught:
        spool.read(2)
    assert str(caught.value) == (
        f"{tmp_path}/tracking/segment-00000002.json is cut short or has other bytes than were written; "
        f"bring it back, or remove {tmp_path}/tracking to give up what waits"
    )


def test_a_missing_segment_and_damaged_artifacts_are_named(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path), SERVER)
    for step in (1, 2, 3):
        spool.append(entries(step))
    artifact = tmp_path / "tracking" / "files" / "00000003.1"
    artifact.write_bytes(b"a,c\n")
    with pytest.raises(TrackingError, match=r"files/00000003.1, the artifact 't/a.csv', has other bytes"):
        spool.read(3)
    artifact.unlink()
    with pytest.raises(TrackingError, match=r"files/00000003.1 is missing, the artifact 't/a.csv'"):
        spool.read(3)
    (tmp_path / "tracking" / "segment-00000002.json").unlink()
    with pytest.raises(TrackingError, match=r"segment-00000002.json is missing, though .*00000003.json is"):
        spool.numbers()


def test_what_is_for_another_server_is_not_sent_to_this_one(tmp_path: Path) -> None:
    Spool(str(tmp_path), SERVER).append(entries(1))
    moved = Spool(str(tmp_path), "sqlite:///here.db")
    with pytest.raises(TrackingError, match=r"is for http://mlflow:5000, tracking.uri is sqlite:///here.db"):
        moved.read(1)
    assert len(moved.read(1, any_server=True)) == 3


def test_a_publication_is_of_its_run_name_and_weights() -> None:
    one = publication_of("u", "n", {"m.safetensors": "1", "model.json": "2"})
    assert one == publication_of("u", "n", {"model.json": "3", "m.safetensors": "1"})
    others = [("v", "n", "1"), ("u", "m", "1"), ("u", "n", "2")]
    assert len({one, *(publication_of(run, name, {"m.safetensors": sha}) for run, name, sha in others)}) == 4


# ------------------------------------------------------------------------------------------------- ownership


def test_one_owns_a_spool_at_a_time_and_the_next_one_after_it(folder: str) -> None:
    run, sync = Ownership(folder, "run"), Ownership(folder, "sync")
    run.claim()
    run.check()
    with pytest.raises(BusyError, match="is in use by another process"):
        sync.claim()
    run.release()
    sync.claim()
    sync.check()
    with pytest.raises(BusyError):
        run.claim()
    sync.release()
    run.claim()
    run.release()


def test_a_run_started_again_takes_over_on_object_storage_and_the_older_one_stops_for_good() -> None:
    older, newer = (Ownership("memory://takeover/tracking", "run") for _ in range(2))
    older.claim()
    newer.claim()
    newer.check()
    with pytest.raises(BusyError, match="was taken over by another process"):
        older.check()
    with pytest.raises(BusyError):
        older.claim()
    newer.check()
    newer.release()


def test_a_lease_that_has_passed_is_taken_over_on_object_storage() -> None:
    folder = "memory://lease/tracking"
    gone, sync = Ownership(folder, "run"), Ownership(folder, "sync", lease_s=-60.0)
    gone.claim()
    time.sleep(0.05)
    sync.claim()
    with pytest.raises(BusyError):
        gone.check()
    sync.release()


HOLD = """
import sys
from hssl_dist.files.ownership import Ownership
owner = Ownership(sys.argv[1], "run")
owner.claim()
print("held", flush=True)
sys.stdin.read()
"""


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BusyError):
            Ownership(str(tmp_path), "sync").claim()
        os.kill(process.pid, 9)
        process.wait(20)
    sync = Ownership(str(tmp_path), "sync")
    sync.claim(wait_s=5)
    sync.release()
