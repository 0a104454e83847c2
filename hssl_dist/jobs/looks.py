"""Looks at patients: `<runs>/reporting/<dataset>/<look>.json`, one for each study or model and its patients.

An object is named by what it says, made once and never changed, so that no look is lost when several are
noted at the same moment. `<runs>/reporting/<dataset>.json`, a list of all, is how they were kept before; it
counts as well.
"""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal

from hssl_dist import files
from hssl_dist.jobs.study_files import writing
from hssl_dist.records import Record, content_hash


class Look(Record):
    """Patients that were scored: when first (UTC), by a study under a config, or by `hssl evaluate`.

    Of an evaluation `study` is the model's URI, and `config` that of no study.
    """

    study: str
    config: str
    part: Literal["validation", "test", "all"]
    patients: tuple[str, ...]
    first_at: str
    by: Literal["study", "evaluate"] = "study"

    def is_of(self, other: Look) -> bool:
        """Whether both are of the same config and patients, whenever they were noted."""
        return (self.by, self.config, self.patients) == (other.by, other.config, other.patients)


def now() -> str:
    """The time as looks have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_looks(runs: str, dataset: str) -> list[Look]:
    """All looks at a dataset's patients, in the order in which they were noted."""
    folder = _folder(runs, dataset)
    before = f"{folder}.json"
    entries = json.loads(files.read(before)) if files.exists(before) else []
    looks = [Look.model_validate(entry) for entry in entries]
    for name in files.listing(folder):
        if name.endswith(".json"):
            with suppress(FileNotFoundError):  # withdrawn since it was listed
                looks.append(Look.model_validate_json(files.read(files.join(folder, name))))
    return sorted(looks, key=lambda look: look.first_at)


def write_look(runs: str, dataset: str, look: Look) -> None:
    """Note a look; one of the same config and patients stays as it is. Raises StorageError."""
    url = _url(runs, dataset, look)
    with writing(url):
        files.create(url, (json.dumps(look.model_dump(mode="json"), indent=1) + "\n").encode())


def withdraw_look(runs: str, dataset: str, look: Look) -> None:
    """Take back a look that was noted and not taken."""
    files.remove(_url(runs, dataset, look))


def _url(runs: str, dataset: str, look: Look) -> str:
    name = content_hash([look.by, look.config, look.patients])
    return files.join(_folder(runs, dataset), f"{name}.json")


def _folder(runs: str, dataset: str) -> str:
    return files.join(runs, "reporting", dataset)
