"""What a finished run leaves: `done.json` in its folder, from which the same run again takes its result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hssl_dist import files
from hssl_dist.records import Outcome, canonical_json
from hssl_dist.training.trajectory import check_same

_DONE = "done.json"


def write_done(run_url: str, trajectory: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """Note that the run in this folder is done, under which trajectory and with which summary."""
    done = {"trajectory": trajectory, "summary": summary}
    files.write(files.join(run_url, _DONE), canonical_json(done).encode())


def read_done(run_url: str, name: str, trajectory: Mapping[str, Any]) -> Outcome | None:
    """The outcome of the finished run in this folder; None if there is none.

    Its summary is the first one with `already_done`. Raises ConfigError if that was another trajectory.
    """
    url = files.join(run_url, _DONE)
    if not files.exists(url):
        return None
    done = json.loads(files.read(url))
    check_same(name, done["trajectory"], trajectory)
    summary = {**done["summary"], "already_done": True}
    return Outcome(summary, (f"run {name!r} is done already: {summary['model']}",))
