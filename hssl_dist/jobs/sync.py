"""`hssl sync`: send what runs have kept while the tracking server was down.

Runs whose parent waits too are sent after it, whatever the order of their folders. A run that another process
owns, because it is live or is being sent, is left to that process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hssl_dist import files
from hssl_dist.errors import HsslError, MissingError
from hssl_dist.jobs.finished import complete
from hssl_dist.records import Outcome
from hssl_dist.tracking import Replayed, sync, waiting
from hssl_dist.tracking.client import UnknownRunError

if TYPE_CHECKING:
    from hssl_dist.config.sync import SyncConfig
    from hssl_dist.console import Console


def run(config: SyncConfig, console: Console) -> Outcome:
    """Send all that waits below `config.runs`. The status is `failed` if anything waits on: the server is
    down or refuses, a file is corrupt, or another process is at it.

    Raises MissingError if there is none of the folders.
    """
    places = ", ".join(map(files.shown, config.runs))
    if not any(files.is_folder(root) for root in config.runs):
        raise MissingError(f"there is none of the folders {places}; give those of the runs as --runs")
    left = sorted({folder for root in config.runs for folder in waiting(root)})
    sent, failed = dict[str, Replayed](), dict[str, str]()
    before = len(left) + 1
    while left and len(left) < before:  # a parent's turn may come after its children's
        before, children = len(left), []
        for folder in left:
            try:
                sent[folder] = sync(config.tracking, folder, any_server=config.moved)
                complete(config.tracking, folder)
            except UnknownRunError as error:
                children.append(folder)
                failed[folder] = str(error)
            except (HsslError, OSError) as error:
                failed[folder] = str(error)
            else:
                failed.pop(folder, None)
                console.say(f"{files.shown(folder)}: {_described(sent[folder])}")
        left = children
    return _outcome(places, sent, failed)


def _described(done: Replayed) -> str:
    registered = "".join(f", registered {version.uri}" for version in done.registered)
    return f"{done.metrics} metrics, {done.artifacts} artifacts{registered}"


def _outcome(places: str, sent: dict[str, Replayed], failed: dict[str, str]) -> Outcome:
    runs: list[dict[str, Any]] = [
        {
            "folder": folder,
            "metrics": done.metrics,
            "artifacts": done.artifacts,
            "registered": [version.uri for version in done.registered],
        }
        for folder, done in sorted(sent.items())
        if folder not in failed
    ]
    metrics = sum(entry["metrics"] for entry in runs)
    artifacts = sum(entry["artifacts"] for entry in runs)
    registered = [uri for entry in runs for uri in entry["registered"]]
    count = f"{len(runs)} run{'' if len(runs) == 1 else 's'}"
    total = f"{count} sent: {metrics} metrics, {artifacts} artifacts, {len(registered)} registered"
    return Outcome(
        summary={
            "runs": runs,
            "metrics": metrics,
            "artifacts": artifacts,
            "registered": registered,
            "failed": [{"folder": folder, "reason": reason} for folder, reason in sorted(failed.items())],
        },
        lines=(total if runs or failed else f"nothing waits below {places}",),
        status="failed" if failed else "done",
        warnings=tuple(f"{files.shown(folder)} waits on: {why}" for folder, why in failed.items()),
    )
