"""Operations that are performed again change nothing, and refusals are told from outages."""

from __future__ import annotations

from pathlib import Path

import pytest

from hssl_dist.config.parts import TrackingConfig
from hssl_dist.errors import CheckpointError, MissingError
from hssl_dist.tracking import fetch_model, set_alias
from hssl_dist.tracking.client import UnknownRunError, connect, is_denied, is_outage, silent
from hssl_dist.tracking.operations import (
    End,
    Metrics,
    Operation,
    Register,
    Start,
    local_id,
    new_uuid,
    points,
    publication_of,
)
from hssl_dist.tracking.registry import hashes
from hssl_dist.tracking.server import Server
from hssl_dist.tracking.spool import Entry
from tests.mlflow_server import hung_server
from tests.models import write_placeholder
from tests.s3.ports import free_port


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    return TrackingConfig(uri=f"sqlite:///{tmp_path_factory.mktemp('server')}/mlflow.db", experiment="tests")


def start(name: str, parent: str | None = None) -> Start:
    run_uuid = new_uuid()
    return Start(
        run=local_id(run_uuid),
        uuid=run_uuid,
        name=name,
        experiment="tests",
        params={"a": "1"},
        tags={"hssl.run": name, "hssl.config_hash": "c"},
        parent=parent,
        at_ms=1234,
    )


def perform(tracking: TrackingConfig, folder: Path, *operations: Operation):
    """By a server that remembers nothing of before, as in another process; what the last one gave."""
    server = Server(tracking)
    return [server.perform(Entry(operation), str(folder)) for operation in operations][-1]


def test_a_run_is_made_once_and_a_metric_logged_once_for_each_step(
    tracking: TrackingConfig, tmp_path: Path
) -> None:
    made = start("once")
    first = Metrics(run=made.run, points=points(1, {"loss": 0.5}, 10) + points(2, {"loss": 0.25}, 11))
    again = Metrics(run=made.run, points=points(2, {"loss": 9.0}, 20) + points(3, {"loss": 0.125}, 21))
    twice = Metrics(run=made.run, points=points(4, {"loss": 0.1}, 30) + points(4, {"loss": 0.2}, 31))
    end = End(run=made.run, status="FINISHED", at_ms=5678)
    for _ in range(2):
        perform(tracking, tmp_path, made, first, again, twice, end)
    run_id = Server(tracking).resolve(made.run)
    client = connect(tracking)
    found = client.get_metric_history(run_id, "loss")
    assert [(entry.step, entry.value) for entry in found] == [(1, 0.5), (2, 0.25), (3, 0.125), (4, 0.1)]
    info = client.get_run(run_id).info
    assert (info.status, info.start_time, info.end_time) == ("FINISHED", 1234, 5678)
    replaced = Metrics(run=made.run, points=points(2, {"loss": 9.0}, 40), again=True)
    for _ in range(2):
        perform(tracking, tmp_path, replaced)
    assert len(client.get_metric_history(run_id, "loss")) == 5


def test_a_nested_run_waits_for_its_parent(tracking: TrackingConfig, tmp_path: Path) -> None:
    parent = start("parent")
    child = start("child", parent.run)
    with pytest.raises(
        UnknownRunError, match=f"the run '{parent.run}' is not at sqlite:.* yet; sync"
    ) as caught:
        perform(tracking, tmp_path, child)
    assert is_outage(caught.value)
    with pytest.raises(MissingError, match=f"no run '{child.run}' at .* yet: it was started while"):
        fetch_model(tracking, f"runs:/{child.run}")
    perform(tracking, tmp_path, parent, child)
    server = Server(tracking)
    tags = connect(tracking).get_run(server.resolve(child.run)).data.tags
    assert tags["mlflow.parentRunId"] == server.resolve(parent.run)


def test_a_model_is_registered_once_and_an_alias_that_has_moved_is_not_taken_back(
    tracking: TrackingConfig, tmp_path: Path
) -> None:
    made = start("registers")
    model = write_placeholder(tmp_path / "model")

    def register() -> Register:
        sha256s = hashes(str(model))
        return Register(
            run=made.run,
            publication=publication_of(made.uuid, "once", sha256s),
            name="once",
            folder="model",
            files=sha256s,
            tags={"hssl.run_id": made.run},
            aliases=("champion",),
        )

    wanted = register()
    assert perform(tracking, tmp_path, made, wanted).uri == "models:/once/1"
    (model / "model.safetensors").write_bytes(b"better weights")
    with pytest.raises(CheckpointError, match=r"model.safetensors is not the file that was to be registered"):
        perform(tracking, tmp_path, wanted.model_copy(update={"publication": "another"}))
    assert perform(tracking, tmp_path, register()).uri == "models:/once/2"
    set_alias(tracking, "once", 1, "champion")
    assert perform(tracking, tmp_path, register()).uri == "models:/once/2"
    assert fetch_model(tracking, "models:/once@champion").version == 1


def test_outages_are_told_from_refusals() -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos import databricks_pb2 as codes

    assert is_outage(MlflowException("gone"))
    assert is_outage(MlflowException("busy", codes.TEMPORARILY_UNAVAILABLE))
    assert is_outage(ConnectionError("refused"))
    assert not is_outage(MlflowException("bad name", codes.INVALID_PARAMETER_VALUE))
    assert not is_outage(MissingError("no such folder"))
    assert not is_outage(TypeError("a mistake of ours"))
    assert is_denied(MlflowException("who?", codes.UNAUTHENTICATED))
    assert not is_denied(ConnectionError("refused"))


def test_a_server_that_is_down_or_hangs_is_found_out_within_seconds() -> None:
    assert silent(TrackingConfig(uri="sqlite:///somewhere.db")) is None
    assert silent(TrackingConfig(uri=f"http://127.0.0.1:{free_port()}")) == "Connection refused"
    with hung_server() as tracking:
        assert silent(tracking) == "timed out"
