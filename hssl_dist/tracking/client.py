"""The connection to MLflow: its environment, the SQLite folder, the experiment, and errors in one line.

Every call passes the URI of the config, so nothing depends on (or changes) MLflow's global state.
"""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
import warnings
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hssl_dist.errors import HsslError, MissingError, TrackingError
from hssl_dist.files.locks import only_one
from hssl_dist.records import Lineage
from hssl_dist.tracking.operations import uuid_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

    from hssl_dist.config.parts import TrackingConfig

_SQLITE = "sqlite:///"
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
_PROBE_TIMEOUT_S = 5.0
UUID_TAG = "hssl.run_uuid"
"""Our own id, on every run: what had a local id before the server knew it is found by this."""
_REFUSALS = {
    "ALREADY_EXISTS",
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "NOT_FOUND",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}
_STRANGERS = {"CUSTOMER_UNAUTHORIZED", "UNAUTHENTICATED"}
_DENIALS = {*_STRANGERS, "PERMISSION_DENIED"}
_LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
_FINAL = (HsslError, AttributeError, ImportError, KeyError, TypeError)
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # MLflow's own defaults (7 retries, 120 s each) would keep a job from ending for a quarter of an hour.
    # What fails is kept and tried again (see sender.py), so one retry will do.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    # A server with artifacts on S3 would send clients there, to an endpoint that it reaches and they may not.
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    # Standard output is for results, and progress has its own place.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


def connect(config: TrackingConfig) -> MlflowClient:
    """A client of the tracking server and the registry at `config.uri`.

    Sets the MLflow variables of the environment that the user has not set (they count only before the first
    import of mlflow), and makes the folder of a SQLite file, which one process at a time opens. Raises
    TrackingError.
    """
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    with refusals(config, "opening the tracking store"), ExitStack() as stack:
        if config.uri.startswith(_SQLITE):
            database = _sqlite_file(config.uri)
            database.parent.mkdir(parents=True, exist_ok=True)
            # Two processes that find no tables would both make them, and one would fail.
            stack.enter_context(only_one(database.with_name(f"{database.name}.lock")))
        with warnings.catch_warnings():
            # MLflow uses a SQLAlchemy option that SQLAlchemy has deprecated; not ours to mend.
            warnings.filterwarnings("ignore", message=".*loader strategy is deprecated")
            from mlflow import MlflowClient

            return MlflowClient(tracking_uri=config.uri, registry_uri=config.uri)


def experiment_id(client: MlflowClient, config: TrackingConfig) -> str:
    """The experiment's id, made if need be; artifacts of a SQLite store go to `mlartifacts` beside it."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(config.experiment)
    if found is None:
        location = None
        if config.uri.startswith(_SQLITE):
            location = (_sqlite_file(config.uri).parent / "mlartifacts").as_uri()
        try:
            return str(client.create_experiment(config.experiment, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(config.experiment)  # another process was quicker
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"experiment {config.experiment!r} at {shown(config.uri)} is deleted; "
            "restore it or choose another name with tracking.experiment"
        )
    return str(found.experiment_id)


@contextmanager
def refusals(config: TrackingConfig, action: str) -> Iterator[None]:
    """Turns whatever MLflow raises inside into a TrackingError of one line."""
    try:
        yield
    except HsslError:
        raise
    except Exception as error:
        raise TrackingError(
            f"{action} failed at {shown(config.uri)}: {reason(error)}; {remedy(error)}"
        ) from error


def is_absent(error: Exception) -> bool:
    """Whether an MLflow error says that the thing asked for does not exist."""
    return getattr(error, "error_code", "") in {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"}


def silent(config: TrackingConfig) -> str | None:
    """Why the server does not answer, found out within seconds; None if it does, or is a database.

    A server that accepts connections and never answers would hold MLflow's own calls up for long.
    """
    if not config.uri.startswith(("http://", "https://")):
        return None
    request = urllib.request.Request(f"{shown(config.uri).rstrip('/')}/health")
    try:
        with urllib.request.urlopen(request, timeout=_PROBE_TIMEOUT_S):
            return None
    except urllib.error.HTTPError as error:
        # A gateway without its server says so; whatever else is said, something answers.
        return f"HTTP status {error.code}" if error.code in (502, 503, 504) else None
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError | ConnectionError):
            return reason(error.reason)
        return None  # MLflow may know better, e.g. its own certificates or proxies
    except (TimeoutError, ConnectionError) as error:
        return reason(error)


def check_answers(config: TrackingConfig) -> None:
    """Raise TrackingError, within seconds, if the server does not answer."""
    if (why := silent(config)) is not None:
        raise TrackingError(f"the server at {shown(config.uri)} does not answer: {why}; try again later")


def is_outage(error: Exception) -> bool:
    """Whether the same call may succeed later; the server refused it for good otherwise."""
    if isinstance(error, UnknownRunError):
        return True
    code = getattr(error, "error_code", None)
    return not (isinstance(error, _FINAL) if code is None else code in _REFUSALS)


def is_denied(error: Exception) -> bool:
    """Whether the server wants other credentials."""
    return getattr(error, "error_code", None) in _DENIALS


def remedy(error: Exception) -> str:
    """What to do about an error of MLflow."""
    if not is_denied(error):
        return "check tracking.uri and the server"
    if getattr(error, "error_code", None) not in _STRANGERS:
        return f"ask for permission for the user of {_LOGIN[0]}, or log in as another"
    verb = "check" if all(os.environ.get(name) for name in _LOGIN) else "set"
    return f"{verb} {' and '.join(_LOGIN)}"


class UnknownRunError(TrackingError):
    """A run by its local id that the server does not know yet: what it was started with waits elsewhere."""


def known_run(client: MlflowClient, config: TrackingConfig, run_id: str) -> MlflowRun:
    """The run of that id, MLflow's or a local one. Raises MissingError if the server does not know it."""
    run_uuid = uuid_of(run_id)
    if run_uuid is not None:
        found = run_by_uuid(client, run_uuid)
        if found is None:
            raise MissingError(
                f"no run {run_id!r} at {shown(config.uri)} yet: it was started while the server was down; "
                "run `hssl sync`"
            )
        return found
    try:
        return client.get_run(run_id)
    except Exception as error:
        if not is_absent(error):
            raise
        raise MissingError(f"no run {run_id!r} at {shown(config.uri)}; check the id") from error


def run_by_uuid(client: MlflowClient, run_uuid: str) -> MlflowRun | None:
    """The run, of any experiment, that bears our id; the first, should a lost answer have made two."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(
        experiments,
        f"tags.`{UUID_TAG}` = '{run_uuid}'",
        max_results=1,
        order_by=["attributes.start_time ASC"],
    )
    return found[0] if found else None


def reason(error: BaseException, limit: int = 200) -> str:
    """Why it failed, in one line of at most `limit` characters and without credentials.

    A refused connection or a timeout below MLflow's error says more than MLflow's text around it.
    """
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, ConnectionError | TimeoutError) and (said := inner.strerror or str(inner)):
            return said
        inner = inner.__cause__ or inner.__context__
    text = next(iter(str(error).strip().splitlines()), type(error).__name__)
    text = _CREDENTIALS.sub("", text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def shown(uri: str) -> str:
    """The URI without the user name and password it may carry."""
    return _CREDENTIALS.sub("", uri)


def lineage_tags(lineage: Lineage) -> dict[str, str]:
    """The lineage as `hssl.*` tags of a run or a registered version; what is unknown has no tag."""
    tags = {"hssl.config_hash": lineage.config_hash, "hssl.code_version": lineage.code_version}
    tags |= {f"hssl.manifest.{dataset}": sha256 for dataset, sha256 in lineage.manifests.items()}
    if lineage.parent_run is not None:
        tags["hssl.parent_run"] = lineage.parent_run
    if lineage.parent_model is not None:
        tags["hssl.parent_model"] = lineage.parent_model
    return tags


def _sqlite_file(uri: str) -> Path:
    return Path(uri.removeprefix(_SQLITE))
