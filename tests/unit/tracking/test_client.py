"""Opening a tracking store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROCESSES = 3
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
    command = [sys.executable, "-c", OPEN, f"sqlite:///{tmp_path}/new/mlflow.db"]
    started = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(PROCESSES)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ended = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0] * PROCESSES, ended
    assert len({experiment for experiment, _ in ended}) == 1
