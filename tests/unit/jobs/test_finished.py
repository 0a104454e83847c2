"""What a run that is done finds in the registry when it is asked for again."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from hssl_dist.config.parts import TrackingConfig
from hssl_dist.errors import MissingError
from hssl_dist.jobs.finished import Wanted, read_done, write_done
from hssl_dist.records import Lineage, Outcome
from hssl_dist.tracking import Run, Version, fetch_model, start_run, sync, waits
from hssl_dist.tracking.client import connect
from tests.models import write_placeholder
from tests.s3.ports import free_port

LINEAGE = Lineage(config_hash="c" * 64, code_version="1")


class Finished:
    """A run whose model is version 1 of `unet` in the registry `a.db`, and its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, str(folder / "runs/r")
        self.model = str(write_placeholder(folder / "runs/r/model"))
        run_id, version = self._register(self.tracking("a"), (), "unet")
        assert version is not None
        summary = {"name": "unet", "version": 1, "model": version.uri, "run_id": run_id, "aliases": []}
        write_done(self.place, {"seed": 0}, summary)

    def tracking(self, name: str) -> TrackingConfig:
        return TrackingConfig(uri=f"sqlite:///{self.folder}/{name}.db")

    def again(self, tracking: TrackingConfig, *aliases: str, name: str | None = None) -> Outcome:
        wanted = Wanted(self.model, partial(self._register, tracking, aliases), name, aliases)
        outcome = read_done(tracking, self.place, "r", {"seed": 0}, wanted)
        assert outcome is not None
        return outcome

    def _register(
        self, tracking: TrackingConfig, aliases: tuple[str, ...], name: str
    ) -> tuple[str, Version | None]:
        with _start(tracking, "r", self.place) as run:
            return run.id, run.register(self.model, name, LINEAGE, aliases)


def _start(tracking: TrackingConfig, name: str, place: str) -> Run:
    return start_run(tracking, name, {}, {}, LINEAGE, None, lambda _: None, place)


@pytest.fixture
def finished(tmp_path: Path) -> Finished:
    return Finished(tmp_path)


def test_an_alias_that_the_model_lacks_is_given_once(finished: Finished) -> None:
    tracking = finished.tracking("a")
    assert finished.again(tracking).lines == ("run 'r' is done already: models:/unet/1",)
    aliased = finished.again(tracking, "champion")
    assert aliased.lines == ("run 'r' is done already: models:/unet/1, now also champion",)
    assert aliased.summary["aliases"] == ["champion"]
    assert finished.again(tracking, "champion").lines == ("run 'r' is done already: models:/unet/1",)
    connect(tracking).delete_registered_model_alias("unet", "champion")
    finished.again(tracking, "champion")
    assert fetch_model(tracking, "models:/unet@champion").version == 1

    write_placeholder(finished.folder / "runs/s/model", b"better")
    with _start(tracking, "s", str(finished.folder / "runs/s")) as run:
        run.register(str(finished.folder / "runs/s/model"), "unet", LINEAGE, ("champion",))
    moved = finished.again(tracking, "champion")
    assert moved.warnings == (
        "alias 'champion' has moved on from models:/unet/1 and is left where it is; "
        "`hssl promote --model unet --version 1 --alias champion` takes it back",
    )
    assert fetch_model(tracking, "models:/unet@champion").version == 2


def test_a_lost_registry_is_filled_again(finished: Finished) -> None:
    new = finished.tracking("b")
    again = finished.again(new, "champion")
    assert again.lines == ("run 'r' is done already: models:/unet/1, registered anew",)
    fetched = fetch_model(new, "models:/unet@champion")
    assert fetched.run_id == again.summary["run_id"]
    assert connect(new).get_run(again.summary["run_id"]).info.status == "FINISHED"
    assert finished.again(new, name="other").summary["model"] == "models:/other/1"
    (Path(finished.model) / "model.json").unlink()
    with pytest.raises(
        MissingError, match=f"the model is no longer at {finished.model}, from where it would"
    ):
        finished.again(new, name="third")


def test_a_server_that_is_down_is_waited_for(finished: Finished) -> None:
    down = TrackingConfig(uri=f"http://127.0.0.1:{free_port()}")
    (asked,) = finished.again(down).warnings
    assert asked.startswith("whether the registry still has models:/unet/1 was not asked: the server at http")
    assert not waits(finished.place)
    (told,) = finished.again(down, "champion").warnings
    assert told.startswith("what MLflow was not told waits on: the server at http")
    assert waits(finished.place)
    up = finished.tracking("a")
    sync(up, finished.place, any_server=True)
    assert fetch_model(up, "models:/unet@champion").version == 1
