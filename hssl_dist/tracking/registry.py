"""The model registry: folders of safetensors and JSON, never pickles, registered and fetched by name.

MLflow keeps the alias `latest` for itself: it always names the newest version of a model. So registering
under `latest` needs no alias, and `models:/name@latest` works everywhere.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hssl_dist import files
from hssl_dist.errors import CheckpointError, ConfigError, MissingError
from hssl_dist.tracking.client import (
    check_answers,
    connect,
    is_absent,
    known_run,
    refusals,
    shown,
)
from hssl_dist.tracking.operations import LATEST, Register

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

    from hssl_dist.config.parts import TrackingConfig

_PUBLICATION, _ALIASES = "hssl.publication", "hssl.aliases"
_ALLOWED_SUFFIXES = (".safetensors", ".json")
_MODEL_URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+|latest))")


@dataclass(frozen=True, slots=True)
class Version:
    """A registered version; `uri` is `models:/name/version`."""

    name: str
    version: int

    @property
    def uri(self) -> str:
        """The URI that names exactly this version."""
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True, slots=True)
class Registration:
    """What a run has registered; `run_id` is MLflow's.

    Of the aliases asked for, the version has not got those that it is `lacking` (never given to it, or taken
    from all versions since) and those that have `moved` to another version.
    """

    run_id: str
    version: Version
    lacking: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()


@dataclass(frozen=True)
class FetchedModel:
    """A model's files in a local folder. Hold on to this record while you read: downloads go with it.

    `uri` names the model exactly (an alias is resolved); `name` and `version` are None unless it came from
    the registry, `run_id` is None if it came from a path.
    """

    folder: Path
    uri: str
    name: str | None = None
    version: int | None = None
    run_id: str | None = None


def hashes(folder: str) -> dict[str, str]:
    """SHA-256 of each file of a model's folder, by name."""
    names = [name for name in files.listing(folder) if name.endswith(_ALLOWED_SUFFIXES)]
    return {name: files.sha256(files.join(folder, name))[0] for name in names}


def publish(client: MlflowClient, operation: Register, folder: str) -> Version:
    """The version that the operation makes, or has made before; `operation.run` is MLflow's id.

    Raises CheckpointError if the folder holds other files than it did or anything but safetensors and JSON,
    and what MLflow raises.
    """
    made = published(client, operation.name, operation.publication)
    if made is None:
        fetched = _fetch_folder(folder)
        _check_folder(fetched.folder)
        _check_same(folder, fetched.folder, operation.files)
        tags = operation.tags | {_PUBLICATION: operation.publication}
        model = _uploaded(client, operation, tags, fetched.folder)
        _ensure_name(client, operation.name)
        # The artifact's own location, not `models:/<id>`: MLflow would look that up in its global URI.
        made = client.create_model_version(
            operation.name,
            source=model.artifact_location,
            run_id=operation.run,
            tags=tags,
            model_id=model.model_id,
        )
    lacking, _ = _aliases(client, made, operation.aliases)
    for alias in lacking:
        client.set_registered_model_alias(made.name, alias, str(made.version))
    if lacking:
        given = " ".join(sorted({*_given(made), *lacking}))
        client.set_model_version_tag(made.name, str(made.version), _ALIASES, given)
    return Version(operation.name, int(made.version))


def published(client: MlflowClient, name: str, publication: str) -> ModelVersion | None:
    """The version of `name` that bears this publication."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{_PUBLICATION}` = '{publication}'")
    return min(found, key=lambda version: int(version.version), default=None)


def fetch_model(config: TrackingConfig, uri: str) -> FetchedModel:
    """The files of `models:/name@alias`, `models:/name/version`, `runs:/id`, or of a local or remote folder.

    Raises MissingError that lists what there is, ConfigError for a URI of no such form, TrackingError.
    """
    if uri.startswith("models:/"):
        return _fetch_version(config, uri)
    if uri.startswith("runs:/"):
        return _fetch_from_run(config, uri)
    return _fetch_folder(uri)


def registration_of(
    config: TrackingConfig, run_id: str, name: str | None = None, aliases: Sequence[str] = ()
) -> Registration | None:
    """What a run (given by MLflow's id or a local one) has registered as `name` or, without one, last; None
    if the server knows of nothing. Raises TrackingError.
    """
    check_answers(config)
    client = connect(config)
    with refusals(config, f"looking for what the run {run_id!r} has registered"):
        try:
            known = str(known_run(client, config, run_id).info.run_id)
        except MissingError:
            return None
        found = [
            version
            for version in client.search_model_versions(f"run_id = '{known}'")
            if name in (None, version.name)
        ]
        if not found:
            return None
        newest = max(found, key=lambda version: int(version.version))
        return Registration(
            known, Version(newest.name, int(newest.version)), *_aliases(client, newest, aliases)
        )


def set_alias(config: TrackingConfig, name: str, version: int | None, alias: str) -> Version:
    """Move an alias to a version (the newest if None). Raises MissingError, ConfigError, TrackingError."""
    if alias.lower() == LATEST:
        raise ConfigError("alias 'latest' always names the newest version; choose another, e.g. champion")
    client = connect(config)
    with refusals(config, f"promoting {name!r}"):
        chosen = _find_version(client, config, name, version or LATEST)
        client.set_registered_model_alias(name, alias, str(chosen.version))
    return Version(name, int(chosen.version))


def _fetch_version(config: TrackingConfig, uri: str) -> FetchedModel:
    match = _MODEL_URI.fullmatch(uri)
    if match is None:
        raise ConfigError(f"{uri!r} names no version; write models:/name@alias or models:/name/version")
    client = connect(config)
    with refusals(config, f"fetching {uri!r}"):
        wanted = match["alias"] or match["version"]
        if match["version"] and match["version"] != LATEST:
            found = _find_version(client, config, match["name"], int(wanted))
        else:
            found = _find_version(client, config, match["name"], wanted)
        source = client.get_model_version_download_uri(found.name, str(found.version))
        exact = Version(found.name, int(found.version))
        return _downloaded(config, source, exact.uri, exact.name, exact.version, found.run_id)


def _fetch_from_run(config: TrackingConfig, uri: str) -> FetchedModel:
    run_id = uri.removeprefix("runs:/").strip("/")
    client = connect(config)
    with refusals(config, f"fetching {uri!r}"):
        run = known_run(client, config, run_id)
        model = _newest_model(client, run.info.experiment_id, str(run.info.run_id))
        if model is None:
            raise MissingError(f"run {run_id} has registered no model; let it finish first")
        known = str(run.info.run_id)
        return _downloaded(config, model.artifact_location, f"runs:/{known}", run_id=known)


def _fetch_folder(url: str) -> FetchedModel:
    url = files.resolve(url)
    names = files.listing(url)
    if "model.json" not in names:
        raise MissingError(
            f"no model at {url}: there is no model.json; "
            "give a model's folder, models:/name@alias, models:/name/version or runs:/id"
        )
    if files.is_local(url):
        return FetchedModel(Path(url), url)
    folder = Path(tempfile.mkdtemp(prefix="hssl-model-"))
    fetched = _owning(FetchedModel(folder, url), folder)
    for name in names:
        if name.endswith(_ALLOWED_SUFFIXES):
            (folder / name).write_bytes(files.read(files.join(url, name)))
    return fetched


def _find_version(client: MlflowClient, config: TrackingConfig, name: str, wanted: str | int) -> ModelVersion:
    """The version of that number or alias."""
    try:
        if isinstance(wanted, int):
            return client.get_model_version(name, str(wanted))
        return client.get_model_version_by_alias(name, wanted)
    except Exception as error:
        # An absent alias is reported as an invalid parameter.
        if not is_absent(error) and getattr(error, "error_code", "") != "INVALID_PARAMETER_VALUE":
            raise
        raise MissingError(_what_there_is(client, config, name, wanted)) from error


def _what_there_is(client: MlflowClient, config: TrackingConfig, name: str, wanted: str | int) -> str:
    models = {model.name: model for model in client.search_registered_models(max_results=100)}
    where = f"in the registry at {shown(config.uri)}"
    if name not in models:
        known = (
            f"it has {', '.join(sorted(models))}"
            if models
            else "it has none; run `hssl pretrain` or `hssl finetune` first"
        )
        return f"no model {name!r} {where}: {known}"
    versions = sorted(int(v.version) for v in client.search_model_versions(f"name = '{name}'"))
    aliases = sorted(models[name].aliases)
    what = f"version {wanted}" if isinstance(wanted, int) else f"alias {wanted!r}"
    having = f"versions {', '.join(map(str, versions))}" if versions else "no versions"
    return f"model {name!r} {where} has no {what}: it has {having}, aliases {', '.join([*aliases, LATEST])}"


def _newest_model(client: MlflowClient, experiment: str, run_id: str) -> LoggedModel | None:
    found = client.search_logged_models(
        [experiment],
        filter_string=f"source_run_id = '{run_id}'",
        order_by=[{"field_name": "creation_timestamp", "ascending": False}],
    )
    return next((model for model in found if model.status.value == "READY"), None)


def _uploaded(client: MlflowClient, operation: Register, tags: dict[str, str], folder: Path) -> LoggedModel:
    """The model's files on the server, from this attempt or an earlier one that did not come to its end."""
    experiment = client.get_run(operation.run).info.experiment_id
    found = client.search_logged_models(
        [experiment], filter_string=f"tags.`{_PUBLICATION}` = '{operation.publication}'"
    )
    model = next(iter(found), None)
    if model is None:
        model = client.create_logged_model(
            experiment, name=operation.name, source_run_id=operation.run, tags=tags, model_type="checkpoint"
        )
    if model.status.value != "READY":
        client.log_model_artifacts(model.model_id, str(folder))
        client.finalize_logged_model(model.model_id, "READY")
    return model


def _aliases(
    client: MlflowClient, version: ModelVersion, aliases: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those that the version is lacking, and those that have moved on from it: done again, a registration
    must not take these back.
    """
    if not aliases:
        return (), ()
    now, given = client.get_registered_model(version.name).aliases, _given(version)
    elsewhere = [alias for alias in aliases if str(now.get(alias)) != str(version.version)]
    lacking = tuple(alias for alias in elsewhere if alias not in given or alias not in now)
    return lacking, tuple(alias for alias in elsewhere if alias not in lacking)


def _given(version: ModelVersion) -> list[str]:
    return str(version.tags.get(_ALIASES, "")).split()


def _ensure_name(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _check_folder(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    if strange := [name for name in names if not name.endswith(_ALLOWED_SUFFIXES)]:
        raise CheckpointError(f"{folder / strange[0]} is neither safetensors nor JSON; it is not registered")


def _check_same(url: str, folder: Path, expected: dict[str, str]) -> None:
    """Raise CheckpointError if the folder does not hold the files that were to be registered."""
    found = hashes(str(folder))
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise CheckpointError(
                f"{files.join(url, name)} is not the file that was to be registered (SHA-256 differs); "
                "bring it back, or run the job under another name"
            )


def _downloaded(
    config: TrackingConfig,
    source: str,
    uri: str,
    name: str | None = None,
    version: int | None = None,
    run_id: str | None = None,
) -> FetchedModel:
    from mlflow.artifacts import download_artifacts

    temporary = Path(tempfile.mkdtemp(prefix="hssl-model-"))
    try:
        folder = download_artifacts(artifact_uri=source, tracking_uri=config.uri, dst_path=str(temporary))
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return _owning(FetchedModel(Path(folder), uri, name, version, run_id), temporary)


def _owning(model: FetchedModel, temporary: Path) -> FetchedModel:
    """The record; the temporary folder is removed when nothing holds the record any more."""
    weakref.finalize(model, shutil.rmtree, temporary, ignore_errors=True)
    return model
