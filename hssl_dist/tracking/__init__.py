"""MLflow runs and the model registry. Sole importer of mlflow, which is imported by the first call.

runs.py        what a job logs
sender.py      the thread that sends it
operations.py  what is sent, as records
server.py      the records performed, so that again changes nothing
spool.py       records that wait in the run's folder
replay.py      sending them
registry.py    models
history.py     metrics read back
client.py      the connection
"""

from hssl_dist.tracking.registry import (
    FetchedModel,
    Registration,
    Version,
    fetch_model,
    registration_of,
    set_alias,
)
from hssl_dist.tracking.replay import Replayed, sync, waits
from hssl_dist.tracking.runs import Run, attach_run, start_run
from hssl_dist.tracking.spool import waiting

__all__ = [
    "FetchedModel",
    "Registration",
    "Replayed",
    "Run",
    "Version",
    "attach_run",
    "fetch_model",
    "registration_of",
    "set_alias",
    "start_run",
    "sync",
    "waiting",
    "waits",
]
