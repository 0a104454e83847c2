"""What a finished run leaves: `done.json` in its folder, from which the same run again takes its result.

It is sealed, since others go on from the model that it names.

A run that ended while the tracking server was down has no registered model yet (`model` is null). Once what
waits in its folder has been sent, `complete` writes down what was registered. Each time the same run is asked
for again the registry is, too: what it lacks is registered anew from the run's folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hssl_dist import files
from hssl_dist.errors import BusyError, CheckpointError, CorruptError, HsslError, MissingError, TrackingError
from hssl_dist.files.sealed_json import read_sealed, sealed
from hssl_dist.records import Outcome, canonical_json
from hssl_dist.tracking import Registration, Version, registration_of, sync, waits
from hssl_dist.training.trajectory import check_same

if TYPE_CHECKING:
    from hssl_dist.config.parts import TrackingConfig

NOT_REGISTERED = (
    "not registered, for the tracking server does not answer: the network is safe in its folder, and "
    "`hssl sync` or the same command again registers it"
)
_DONE = "done.json"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a job wants of the registry: its model as `name` (None: as what it was registered before), with
    these aliases.

    `register` takes the run up again and registers the model in the folder `model` under a name: the run's
    id, and the version, or None if the server does not answer and that waits.
    """

    model: str
    register: Callable[[str], tuple[str, Version | None]]
    name: str | None = None
    aliases: tuple[str, ...] = ()


def write_done(run_url: str, trajectory: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    """Note that the run in this folder is done, under which trajectory and with which summary."""
    done = sealed({"trajectory": trajectory, "summary": summary})
    files.write(files.join(run_url, _DONE), canonical_json(done).encode())


def read_done(
    tracking: TrackingConfig, run_url: str, name: str, trajectory: Mapping[str, Any], wanted: Wanted
) -> Outcome | None:
    """The outcome of the finished run in this folder; None if there is none.

    What still waits for the tracking server is sent first, and what the registry lacks of what is wanted is
    made up for; if the server does not answer, that waits in the run's folder, and a warning says so. The
    summary is the first one with `already_done`, and what was registered since.

    Raises ConfigError if that was another trajectory, CheckpointError if the file is damaged, MissingError if
    a model is to be registered that is no longer in its folder, and TrackingError if the server refuses it.
    """
    done = _read(run_url)
    if done is None:
        return None
    check_same(name, done["trajectory"], trajectory)
    summary, told, warnings = done["summary"], "", []
    model_name = wanted.name or str(summary["name"])
    try:
        if waits(run_url):
            sync(tracking, run_url)
        found = registration_of(tracking, summary["run_id"], model_name, wanted.aliases)
    except (TrackingError, BusyError) as error:
        warnings.append(_unasked(summary, wanted, model_name, waits(run_url), error))
    else:
        if found is None or found.lacking:
            found, told = _register(wanted, model_name, found)
        if found is not None:
            warnings += [_moved(found, alias) for alias in found.moved]
            summary = _with(summary, found, wanted.aliases)
    if summary != done["summary"]:
        write_done(run_url, done["trajectory"], summary)
    line = f"run {name!r} is done already: {summary['model'] or NOT_REGISTERED}{told}"
    return Outcome({**summary, "already_done": True}, (line,), warnings=tuple(warnings))


def is_done(run_url: str) -> bool:
    """Whether the run in this folder is done."""
    return files.exists(files.join(run_url, _DONE))


def complete(tracking: TrackingConfig, run_url: str) -> None:
    """Write down what was registered of a run that ended without; nothing if it has not ended so, or there is
    no such version yet. Raises TrackingError if the server does not answer.
    """
    done = _read(run_url)
    if done is None or done["summary"]["model"] is not None:
        return
    found = registration_of(tracking, done["summary"]["run_id"])
    if found is not None:
        write_done(run_url, done["trajectory"], _with(done["summary"], found))


def _register(wanted: Wanted, name: str, before: Registration | None) -> tuple[Registration | None, str]:
    """Register the model, or give its version the aliases it is lacking; and what to say of it.

    None if the server does not answer any more and it waits.
    """
    from hssl_dist.networks.weights import CARD_NAME  # torch comes with it, which `hssl sync` can do without

    if not files.exists(files.join(wanted.model, CARD_NAME)):
        raise MissingError(
            f"the model is no longer at {wanted.model}, from where it would be registered; "
            "bring it back, or give another --name to train it again"
        )
    run_id, version = wanted.register(name)
    if version is None:
        return None, ", the rest waits for the tracking server"
    if before is None:
        return Registration(run_id, version), ", registered anew"
    return Registration(run_id, version, moved=before.moved), f", now also {', '.join(before.lacking)}"


def _unasked(
    summary: Mapping[str, Any], wanted: Wanted, name: str, is_waiting: bool, error: HsslError
) -> str:
    """The warning where the server does not answer; what it would have to be told then waits."""
    model = summary["model"]
    is_known = model is not None and str(model).split("/")[1] == name
    if is_waiting and not is_known:
        return f"what MLflow was not told waits on: {error}"
    if is_known and set(wanted.aliases) <= set(summary.get("aliases", ())):
        return f"whether the registry still has {model} was not asked: {error}"
    wanted.register(name)
    return f"what MLflow was not told waits on: {error}"


def _moved(found: Registration, alias: str) -> str:
    return (
        f"alias {alias!r} has moved on from {found.version.uri} and is left where it is; "
        f"`hssl promote --model {found.version.name} --version {found.version.version} --alias {alias}` "
        "takes it back"
    )


def _with(summary: Mapping[str, Any], found: Registration, aliases: tuple[str, ...] = ()) -> dict[str, Any]:
    """The summary with what is registered, as fine-tuning and pretraining each say it."""
    known = {**summary, "model": found.version.uri, "run_id": found.run_id}
    if "version" in known:
        known |= {"name": found.version.name, "version": found.version.version}
    if "aliases" in known:
        known["aliases"] = list(dict.fromkeys([*known["aliases"], *aliases]))
    return known


def noted_summary(run_url: str) -> dict[str, Any] | None:
    """The summary of the finished run in this folder, of whatever trajectory; None if there is none."""
    done = _read(run_url)
    return None if done is None else dict(done["summary"])


def needed(summary: Mapping[str, Any], name: str) -> str:
    """The version that a run registered, for what goes on from it. Raises TrackingError if there is none."""
    if summary["model"] is None:
        raise TrackingError(f"the network of {name!r} is {NOT_REGISTERED}; then run this again")
    return str(summary["model"])


def _read(run_url: str) -> dict[str, Any] | None:
    url = files.join(run_url, _DONE)
    if not files.exists(url):
        return None
    remedy = "remove it, and the run goes on from its last checkpoint"
    try:
        done: dict[str, Any] = read_sealed(files.shown(url), files.read(url))
    except CorruptError as error:
        raise CheckpointError(f"{error}; {remedy}") from None
    if not isinstance(done, dict) or done.keys() != {"trajectory", "summary"}:
        raise CheckpointError(f"{files.shown(url)} is not what a finished run leaves; {remedy}")
    return done
