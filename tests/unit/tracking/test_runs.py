import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from hssl_dist.config.parts import TrackingConfig
from hssl_dist.errors import Interrupted, TrackingError
from hssl_dist.records import Lineage
from hssl_dist.tracking import Run, attach_run, start_run
from hssl_dist.tracking.client import connect, shown
from hssl_dist.tracking.runs import flatten
from tests.s3.ports import free_port

LINEAGE = Lineage(
    config_hash="c" * 64,
    code_version="0.1.0",
    manifests={"heart": "a" * 64},
    parent_model="models:/hssl-unet/1",
)


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    folder = tmp_path_factory.mktemp("tracking")
    return TrackingConfig(uri=f"sqlite:///{folder}/deep er/mlflow.db", experiment="tests")


def _start(tracking: TrackingConfig, name: str, lineage: Lineage = LINEAGE) -> Run:
    return start_run(tracking, name, {"training": {"steps": 3}, "seed": 0}, {"hssl.job": "test"}, lineage)


def test_a_run_is_nested_under_the_parent_of_the_config_when_it_starts_and_when_it_goes_on(
    tracking: TrackingConfig,
) -> None:
    parent = _start(tracking, "parent")
    nested = tracking.model_copy(update={"parent": parent.id})
    child = _start(nested, "child")
    child.finish("interrupted")
    assert _start(nested, "child").id == child.id
    client = connect(tracking)
    children = client.search_runs(
        [client.get_run(parent.id).info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.id}'"
    )
    assert [run.info.run_id for run in children] == [child.id]
    assert "mlflow.parentRunId" not in client.get_run(parent.id).data.tags


def test_run_keeps_params_metrics_tags_and_artifacts(tracking: TrackingConfig):
    run = _start(tracking, "keeps")
    run.log_metrics(1, {"loss": 2.0, "dice": 0.5})
    run.log_metrics(2, {"loss": float("nan")})
    run.log_text("notes/a.txt", "déjà")
    run.log_json("config.json", {"b": 1})
    run.log_figure("figures/curve.png", b"png")
    run.finish("done")

    client = connect(tracking)
    kept = client.get_run(run.id)
    assert kept.info.status == "FINISHED"
    assert kept.info.run_name == "keeps"
    assert kept.data.params == {"training.steps": "3", "seed": "0"}
    assert {key: value for key, value in kept.data.tags.items() if key.startswith("hssl.")} == {
        "hssl.run": "keeps",
        "hssl.run_uuid": kept.data.tags["hssl.run_uuid"],
        "hssl.job": "test",
        "hssl.config_hash": "c" * 64,
        "hssl.code_version": "0.1.0",
        "hssl.manifest.heart": "a" * 64,
        "hssl.parent_model": "models:/hssl-unet/1",
    }
    assert [(m.step, m.value) for m in client.get_metric_history(run.id, "dice")] == [(1, 0.5)]
    assert [m.step for m in client.get_metric_history(run.id, "loss")] == [1, 2]
    artifacts = Path(tracking.uri.removeprefix("sqlite:///")).parent / "mlartifacts" / run.id / "artifacts"
    assert (artifacts / "notes/a.txt").read_text(encoding="utf-8") == "déjà"
    assert json.loads((artifacts / "config.json").read_text()) == {"b": 1}
    assert (artifacts / "figures/curve.png").read_bytes() == b"png"


def test_unfinished_run_of_same_name_and_config_goes_on(tracking: TrackingConfig):
    first = _start(tracking, "resumed")
    first.log_metrics(1, {"loss": 1.0})
    first.finish("interrupted")
    moved = LINEAGE.model_copy(update={"parent_model": "models:/hssl-unet/2"})
    second = _start(tracking, "resumed", moved)
    assert second.id == first.id
    assert connect(tracking).get_run(first.id).data.tags["hssl.parent_model"] == "models:/hssl-unet/2"
    other = _start(tracking, "resumed", LINEAGE.model_copy(update={"config_hash": "d" * 64}))
    assert other.id != first.id
    second.finish("done")
    assert _start(tracking, "resumed").id != first.id


def test_a_run_goes_on_by_its_id_and_one_that_the_server_has_lost_starts_anew(tracking: TrackingConfig):
    first = _start(tracking, "by-id")
    first.finish("done")
    assert start_run(tracking, "by-id", {}, {}, LINEAGE, run_id=first.id).id == first.id
    lost = start_run(tracking, "by-id", {}, {}, LINEAGE, run_id="0" * 32)
    assert lost.id not in {first.id, "0" * 32}


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (ValueError, "FAILED"), (Interrupted, "KILLED"), (KeyboardInterrupt, "KILLED")],
)
def test_a_run_ends_as_its_block_does(
    tracking: TrackingConfig, error: type[BaseException] | None, status: str
):
    run = _start(tracking, f"ends-{status}")
    with nullcontext() if error is None else pytest.raises(error), run:
        if error is not None:
            raise error("stop")
    assert connect(tracking).get_run(run.id).info.status == status


def test_attached_run_logs_to_the_same_run(tracking: TrackingConfig):
    run = _start(tracking, "attached")
    worker = attach_run(tracking, run.id)
    worker.log_metrics(7, {"loss": 3.0})
    worker.flush()
    assert connect(tracking).get_run(run.id).data.metrics == {"loss": 3.0}


def test_many_metrics_and_params_are_sent_in_pieces(tracking: TrackingConfig):
    run = start_run(tracking, "many", {f"p{i}": i for i in range(230)}, {}, LINEAGE)
    run.log_metrics(1, {f"m{i}": float(i) for i in range(1100)})
    run.finish()
    data = connect(tracking).get_run(run.id).data
    assert len(data.params) == 230
    assert len(data.metrics) == 1100


def test_names_that_mlflow_refuses_are_mended(tracking: TrackingConfig):
    run = _start(tracking, "names")
    run.log_metrics(1, {"val_dice/Tumeur à gauche (T1)": 0.5, "/a//b/": 1.0})
    run.finish()
    assert connect(tracking).get_run(run.id).data.metrics == {
        "val_dice/Tumeur _ gauche _T1_": 0.5,
        "a/b": 1.0,
    }


def test_logging_that_fails_warns_once_and_training_goes_on(tracking: TrackingConfig):
    warnings: list[str] = []
    run = attach_run(tracking, "0" * 32, warn=warnings.append)  # no such run: everything is refused
    run.log_metrics(1, {"loss": 1.0})
    run.flush()
    run.log_text("a.txt", "a")
    run.finish()
    assert warnings == [
        f"tracking failed, the run goes on without it for now: Run with id={'0' * 32} not found"
    ]


def test_unreachable_server_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    port = free_port()
    tracking = TrackingConfig(uri=f"http://user:secret@127.0.0.1:{port}")
    with pytest.raises(TrackingError) as caught:
        _start(tracking, "nowhere")
    assert str(caught.value) == (
        f"starting the run 'nowhere' failed at http://127.0.0.1:{port}: Connection refused; "
        "check tracking.uri and the server"
    )


def test_folder_that_cannot_be_made_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match=r"opening the tracking store failed at sqlite:///.*File exists"):
        connect(TrackingConfig(uri=f"sqlite:///{tmp_path}/file/mlflow.db"))


def test_flatten_is_dotted_without_passwords_and_bounded():
    nested = {
        "a": {"b": {"c": (1, 2)}, "e": {}},
        "url": "http://me:pw@host:1/x",
        "none": None,
        "long": "x" * 7000,
    }
    assert flatten(nested) == {
        "a.b.c": "[1,2]",
        "a.e": "{}",
        "url": "http://host:1/x",
        "none": "null",
        "long": "x" * 6000,
    }
    assert shown("sqlite:////a@b/c.db") == "sqlite:////a@b/c.db"
