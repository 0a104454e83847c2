"""What a finished run leaves: `done.json` in its folder, from which the same run again takes its result.

A run that ended while the tracking server was down has no registered model yet (`model` is null). Once what
waits in its folder has been sent, `complete` writes down what was registered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hssl_dist import files
from hssl_dist.errors import TrackingError
from hssl_dist.records import Outcome, canonical_json
from hssl_dist.tracking import sync, version_of_run, waits
from hssl_dist.training.trajectory import check_same

if TYPE_CHECKING:
    from hssl_dist.config.parts import TrackingConfig

NOT_REGISTERED = (
    "not registered, for the tracking server does not answer: the network is safe in its folder, and "
    "`hssl sync` or the same command again registers it"
)
_DONE = "done.json"


def write_done(run_url: str, trajectory: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """Note that the run in this folder is done, under which trajectory and with which summary."""
    done = {"trajectory": trajectory, "summary": summary}
    files.write(files.join(run_url, _DONE), canonical_json(done).encode())


def read_done(
    tracking: TrackingConfig, run_url: str, name: str, trajectory: Mapping[str, Any]
) -> Outcome | None:
    """The outcome of the finished run in this folder; None if there is none.

    What still waits for the tracking server is sent first; if that does not work a warning says so. The
    summary is the first one with `already_done`. Raises ConfigError if that was another trajectory.
    """
    done = _read(run_url)
    if done is None:
        return None
    check_same(name, done["trajectory"], trajectory)
    warnings: tuple[str, ...] = ()
    if done["summary"]["model"] is None or waits(run_url):
        try:
            if waits(run_url):
                sync(tracking, run_url)
            complete(tracking, run_url)
        except TrackingError as error:
            warnings = (f"what MLflow was not told waits on: {error}",)
        done = _read(run_url) or done
    summary = {**done["summary"], "already_done": True}
    told = summary["model"] or NOT_REGISTERED
    return Outcome(summary, (f"run {name!r} is done already: {told}",), warnings=warnings)


def complete(tracking: TrackingConfig, run_url: str) -> None:
    """Write down what was registered of a run that ended without; nothing if it has not ended so, or there is
    no such version yet. Raises TrackingError if the server does not answer.
    """
    done = _read(run_url)
    if done is None or done["summary"]["model"] is not None:
        return
    found = version_of_run(tracking, done["summary"]["run_id"])
    if found is None:
        return
    run_id, version = found
    summary = done["summary"] | {"model": version.uri, "run_id": run_id}
    if "version" in summary:
        summary |= {"name": version.name, "version": version.version}
    write_done(run_url, done["trajectory"], summary)


def needed(summary: Mapping[str, Any], name: str) -> str:
    """The version that a run registered, for what goes on from it. Raises TrackingError if there is none."""
    if summary["model"] is None:
        raise TrackingError(f"the network of {name!r} is {NOT_REGISTERED}; then run this again")
    return str(summary["model"])


def _read(run_url: str) -> dict[str, Any] | None:
    url = files.join(run_url, _DONE)
    done: dict[str, Any] | None = json.loads(files.read(url)) if files.exists(url) else None
    return done
