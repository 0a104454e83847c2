"""MLflow runs and the model registry. Sole importer of mlflow, which is imported by the first call.

runs.py        what a job logs
sender.py      the thread that sends it
operations.py  what is sent, as records
server.py      the records performed, so that again changes nothing
spool.py       records that wait in the run's folder
ownership.py   who may send them
replay.py      sending them
registry.py    models
history.py     metrics read back
client.py      the connection
"""

from hssl_dist.tracking.ownership import BusyError
from hssl_dist.tracking.registry import (
    FetchedModel,
    Version,
    fetch_model,
    register_model,
    set_alias,
    version_of_run,
)
from hssl_dist.tracking.replay import Replayed, sync, waits
from hssl_dist.tracking.runs import Run, attach_run, start_run
from hssl_dist.tracking.spool import waiting

__all__ = [
    "BusyError",
    "FetchedModel",
    "Replayed",
    "Run",
    "Version",
    "attach_run",
    "fetch_model",
    "register_model",
    "set_alias",
    "start_run",
    "sync",
    "version_of_run",
    "waiting",
    "waits",
]
