"""Opening a tracking store."""

from __future__ import annotations

from pathlib import Path

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
