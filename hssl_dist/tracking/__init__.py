"""MLflow runs and the model registry. Sole importer of mlflow, which is imported by the first call."""

from hssl_dist.tracking.registry import FetchedModel, Version, fetch_model, register_model, set_alias
from hssl_dist.tracking.runs import Run, attach_run, start_run

__all__ = [
    "FetchedModel",
    "Run",
    "Version",
    "attach_run",
    "fetch_model",
    "register_model",
    "set_alias",
    "start_run",
]
