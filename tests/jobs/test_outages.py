"""Runs through outages of a real MLflow server: whatever happens, it ends with what an undisturbed run has.

The tests share one server and follow each other: each leaves it up.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hssl_dist.config.parts import StoreConfig, TrackingConfig
from hssl_dist.config.sync import SyncConfig
from hssl_dist.console import Console
from hssl_dist.jobs import pretrain, sync
from hssl_dist.records import Lineage, Outcome
from hssl_dist.tracking import Run, fetch_model, start_run
from hssl_dist.tracking.client import connect
from hssl_dist.tracking.history import metric_history
from tests.mlflow_server import MlflowServer, hung_server
from tests.models import write_placeholder
from tests.tiny_pretraining import config, write_store

pytestmark = pytest.mark.timeout(600)  # each start of the server takes a while
LINEAGE = Lineage(config_hash="c" * 64, code_version="0.1.0")
STEP_S = 1.0
"""What a step may be held up by, far below any timeout."""
WEIGHTS = b"weights" * 100


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with MlflowServer(tmp_path_factory.mktemp("tracking") / "server") as server:
            yield server


def begin(tracking: TrackingConfig, folder: Path, name: str, warnings: list[str] | None = None) -> Run:
    warn = (lambda _: None) if warnings is None else warnings.append
    return start_run(tracking, name, {"steps": 30}, {}, LINEAGE, warn=warn, folder=str(folder))


def loss(step: int) -> float:
    return 1.0 / step


def log(run: Run, first: int, last: int) -> float:
    """Log steps `first` to `last`; the longest that one took, in seconds."""
    longest_s = 0.0
    for step in range(first, last + 1):
        start_s = time.monotonic()
        run.log_metrics(step, {"loss": loss(step), "odd": float("nan") if step % 2 else float("inf")})
        longest_s = max(longest_s, time.monotonic() - start_s)
    return longest_s


def assert_whole(tracking: TrackingConfig, run_id: str, steps: int) -> None:
    """All that the server has of `loss` and `odd`, entry by entry, is what an undisturbed run has."""
    client = connect(tracking)
    for key in ("loss", "odd"):
        found = sorted((entry.step, repr(entry.value)) for entry in client.get_metric_history(run_id, key))
        values = {"loss": loss, "odd": lambda step: float("nan") if step % 2 else float("inf")}
        if key == "loss":
            assert found == [(step, repr(values[key](step))) for step in range(1, steps + 1)]
        else:
            assert [step for step, _ in found] == list(range(1, steps + 1))


def only_run(tracking: TrackingConfig, name: str) -> str:
    client = connect(tracking)
    experiment = client.get_experiment_by_name("tests")
    found = client.search_runs([experiment.experiment_id], f"tags.`hssl.run` = '{name}'")
    assert len(found) == 1
    return str(found[0].info.run_id)


def segments(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "tracking").glob("segment-*.json"))


def synced(tracking: TrackingConfig, folder: Path) -> Outcome:
    return sync.run(SyncConfig(runs=(str(folder),), tracking=tracking), Console(io.StringIO()))


def test_a_healthy_run_keeps_nothing(server: MlflowServer, tmp_path: Path) -> None:
    run = begin(server.tracking, tmp_path, "healthy")
    log(run, 1, 30)
    run.finish()
    assert [path.name for path in (tmp_path / "tracking").iterdir()] == ["run.json"]
    assert_whole(server.tracking, run.id, 30)
    tags = connect(server.tracking).get_run(run.id).data.tags
    assert tags["hssl.run_uuid"] == json.loads((tmp_path / "tracking" / "run.json").read_text())["uuid"]


def test_a_server_that_is_killed_and_comes_back_has_all_of_it(server: MlflowServer, tmp_path: Path) -> None:
    warnings: list[str] = []
    run = begin(server.tracking, tmp_path, "killed", warnings)
    log(run, 1, 10)
    run.flush()
    server.kill()
    assert log(run, 11, 20) < STEP_S
    run.log_text("notes/a.txt", "while it was down")
    run.flush()
    assert segments(tmp_path) == ["segment-00000001.json"]
    (warning,) = warnings
    assert re.fullmatch(
        # The last that is heard of it, as it is killed: it may still have taken the connection.
        "tracking failed, the run goes on without it for now: "
        "(Connection refused|Connection reset by peer|Remote end closed connection without response); "
        f"what it logs waits in {re.escape(str(tmp_path))}/tracking for the server, or for `hssl sync`",
        warning,
    )
    server.start()
    log(run, 21, 30)
    run.finish()
    assert segments(tmp_path) == []
    assert_whole(server.tracking, run.id, 30)
    client = connect(server.tracking)
    assert client.get_run(run.id).info.status == "FINISHED"
    assert [item.path for item in client.list_artifacts(run.id, "notes")] == ["notes/a.txt"]


def test_a_run_that_starts_while_it_is_down_is_sent_with_its_children_and_its_model(
    server: MlflowServer, tmp_path: Path
) -> None:
    server.kill()
    parent = begin(server.tracking, tmp_path / "z-parent", "parent")
    assert parent.id.startswith("local-")
    nested = server.tracking.model_copy(update={"parent": parent.id})
    folder = tmp_path / "a-child"  # comes first when the folders are walked
    write_placeholder(folder / "model", WEIGHTS)
    child = begin(nested, folder, "child")
    log(child, 1, 15)
    child.finish("interrupted")
    child = begin(nested, folder, "child")  # started again, and still down: the same run
    log(child, 13, 30)
    lineage = LINEAGE.model_copy(update={"parent_run": child.id})
    assert child.register(str(folder / "model"), "outages", lineage, ("champion",)) is None
    child.finish()
    parent.finish()
    down = synced(server.tracking, tmp_path)
    assert down.status == "failed"
    assert "does not answer: Connection refused; try again later" in down.warnings[0]

    server.start()
    outcome = synced(server.tracking, tmp_path)
    assert outcome.status == "done", outcome
    assert outcome.summary["registered"] == ["models:/outages/1"]
    run_id = only_run(server.tracking, "child")
    assert_whole(server.tracking, run_id, 30)
    client = connect(server.tracking)
    tags = client.get_run(run_id).data.tags
    assert tags["mlflow.parentRunId"] == only_run(server.tracking, "parent")
    assert tags["hssl.run_uuid"] == child.id.removeprefix("local-")
    version = client.get_model_version("outages", "1")
    assert (version.run_id, version.tags["hssl.run_id"], version.tags["hssl.parent_run"]) == (run_id,) * 3
    assert fetch_model(server.tracking, "models:/outages@champion").version == 1
    assert (fetch_model(server.tracking, f"runs:/{child.id}").folder / "model.safetensors").read_bytes() == (
        WEIGHTS
    )
    assert metric_history(server.tracking, child.id)["loss"][-1] == (30, loss(30))
    assert synced(server.tracking, tmp_path).lines == (f"nothing waits below {tmp_path}",)


DIE = """
import os, sys
from hssl_dist.config.parts import TrackingConfig
from hssl_dist.files.ownership import Ownership
from hssl_dist.tracking.replay import replay
from hssl_dist.tracking.server import Server
from hssl_dist.tracking.spool import Spool

class Dying(Server):
    left = int(sys.argv[3])
    def perform(self, entry, run_folder):
        version = super().perform(entry, run_folder)
        Dying.left -= 1
        if Dying.left == 0:
            os.kill(os.getpid(), 9)
        return version

tracking = TrackingConfig(uri=sys.argv[1], experiment="tests")
spool = Spool(sys.argv[2], tracking.uri)
ownership = Ownership(spool.folder, "sync")
ownership.claim()
replay(Dying(tracking), spool, ownership)
"""


def test_a_replay_that_is_killed_after_any_operation_and_repeated_sends_each_thing_once(
    server: MlflowServer, tmp_path: Path
) -> None:
    server.kill()
    run = begin(server.tracking, tmp_path, "replayed")  # operation 1
    write_placeholder(tmp_path / "model")
    log(run, 1, 20)
    run.flush()
    log(run, 21, 30)
    run.log_text("a.txt", "a")
    run.register(str(tmp_path / "model"), "replayed", LINEAGE, ("champion",))
    run.finish()
    server.start()
    for kept in (1, 2, 4):  # nothing goes before its segment is through, so each attempt begins there
        killed = subprocess.run(
            [sys.executable, "-c", DIE, server.url, str(tmp_path), str(kept)], timeout=120, check=False
        )
        assert killed.returncode == -signal.SIGKILL
        assert segments(tmp_path)
    outcome = synced(server.tracking, tmp_path)
    assert outcome.status == "done", outcome
    run_id = only_run(server.tracking, "replayed")
    assert_whole(server.tracking, run_id, 30)
    client = connect(server.tracking)
    assert client.get_run(run_id).info.status == "FINISHED"
    assert [str(version.version) for version in client.search_model_versions("name = 'replayed'")] == ["1"]
    experiment = client.get_experiment_by_name("tests").experiment_id
    assert len(client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")) == 1


def test_a_server_that_stops_answering_midway_holds_no_step_up_and_what_arrives_late_is_there_once(
    server: MlflowServer, tmp_path: Path
) -> None:
    assert server.process is not None
    run = begin(server.tracking, tmp_path, "stalled")
    log(run, 1, 10)
    run.flush()
    os.killpg(server.process.pid, signal.SIGSTOP)
    try:
        longest_s = log(run, 11, 20)
        time.sleep(3)  # the sender is in a call that hangs now
        longest_s = max(longest_s, log(run, 21, 30))
        start_s = time.monotonic()
        run.finish()
        assert time.monotonic() - start_s < 60
    finally:
        os.killpg(server.process.pid, signal.SIGCONT)
    assert longest_s < STEP_S
    assert segments(tmp_path)
    assert synced(server.tracking, tmp_path).status == "done"
    assert_whole(server.tracking, run.id, 30)


def test_a_server_that_never_answers_holds_neither_the_start_nor_a_step_up(tmp_path: Path) -> None:
    with hung_server() as tracking:
        start_s = time.monotonic()
        run = begin(tracking, tmp_path, "hung")
        assert time.monotonic() - start_s < 30
        assert log(run, 1, 30) < STEP_S
        start_s = time.monotonic()
        run.finish()
        assert time.monotonic() - start_s < 30
    assert len(segments(tmp_path)) >= 2


def test_a_run_that_resumes_from_an_older_checkpoint_logs_each_step_once(
    server: MlflowServer, tmp_path: Path
) -> None:
    first = begin(server.tracking, tmp_path, "resumed")
    log(first, 1, 18)
    first.finish("interrupted")
    second = begin(server.tracking, tmp_path, "resumed")
    assert second.id == first.id
    # A checkpoint of step 22 whose last steps the killed process had not sent; then one of step 10.
    odd = {step: float("nan") if step % 2 else float("inf") for step in range(1, 31)}
    second.log_history([(step, {"loss": loss(step), "odd": odd[step]}) for step in range(1, 23)])
    second.finish("interrupted")
    third = begin(server.tracking, tmp_path, "resumed")
    log(third, 11, 30)
    third.finish()
    assert_whole(server.tracking, first.id, 30)


def test_no_credentials_are_kept(tmp_path: Path) -> None:
    tracking = TrackingConfig(uri="http://canary-user:canary-secret@127.0.0.1:9", experiment="tests")
    said: list[str] = []
    params = {"url": "http://canary-user:canary-secret@host/x"}
    run = start_run(tracking, "canary", params, {}, LINEAGE, warn=said.append, folder=str(tmp_path))
    run.log_metrics(1, {"loss": 1.0})
    run.log_json("config.json", {"a": 1})
    run.finish()
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) >= 4
    for path in kept:
        assert b"canary-" not in path.read_bytes(), path
    assert "canary-" not in " ".join(said)


def test_a_pretraining_without_a_server_ends_well_and_is_whole_once_it_is_synced(
    server: MlflowServer, tmp_path: Path
) -> None:
    write_store(str(tmp_path / "store"))

    def run(name: str) -> Outcome:
        settings = config(
            name=name,
            store=StoreConfig(url=str(tmp_path / "store")),
            runs=str(tmp_path / "runs"),
            tracking=server.tracking,
            runner="inline",
            register_as="offline",
        )
        return pretrain.run(settings, Console(io.StringIO()))

    server.kill()
    outcome = run("offline")
    assert outcome.status == "done"
    assert outcome.summary["model"] is None
    assert "not registered, for the tracking server does not answer" in outcome.lines[0]
    again = run("offline")
    assert (again.status, again.summary["model"], again.summary["already_done"]) == ("done", None, True)
    assert "waits on: the server at" in again.warnings[0]
    server.start()
    assert synced(server.tracking, tmp_path / "runs").status == "done"
    registered = run("offline").summary
    assert registered["model"] == "models:/offline/1"
    undisturbed = run("undisturbed").summary
    speed = ("samples_per_s", "data_wait_share", "cache_", "bytes_", "requests_")
    found, expected = (
        {key: values for key, values in metric_history(server.tracking, each["run_id"]).items()
         if not key.startswith(speed)}
        for each in (registered, undisturbed)
    )  # fmt: skip
    assert found == expected
    assert found["loss"][-1][0] == registered["steps"]
    client = connect(server.tracking)
    assert {item.path for item in client.list_artifacts(registered["run_id"])} >= {"config.json", "figures"}
