"""Opening a tracking store, and why it does not answer."""

from __future__ import annotations

from http.client import RemoteDisconnected
from pathlib import Path

import pytest

from hssl_dist.tracking.client import reason
from tests.at_once import at_once

OPEN = """
import sys
from hssl_dist.config.parts import TrackingConfig
from hssl_dist.tracking.client import connect, experiment_id
import mlflow
print("ready", flush=True)
sys.stdin.readline()
config = TrackingConfig(uri=sys.argv[1])
print(experiment_id(connect(config), config))
"""


def test_processes_that_find_no_database_make_it_once(tmp_path: Path) -> None:
    """They import MLflow first, so that all of them open the store at the same moment."""
    said = at_once(OPEN, [f"sqlite:///{tmp_path}/new/mlflow.db"], 3, 120)
    assert len(set(said)) == 1


@pytest.mark.parametrize(
    ("below", "expected"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (RemoteDisconnected("Remote end closed connection"), "Remote end closed connection"),
        (TimeoutError("timed out"), "timed out"),
        (TimeoutError(), "the request failed"),
        (ValueError("of something else"), "the request failed"),
    ],
)
def test_the_reason_is_what_befell_the_connection(below: Exception, expected: str) -> None:
    error = RuntimeError("the request failed\nin many words")
    error.__cause__ = below
    assert reason(error) == expected
