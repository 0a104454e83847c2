"""Who has looked at which patients: `<runs>/reporting/<dataset>.json`, a line per study and set of patients.

Validation patients may be scored as often as one likes, which is counted. Test patients are scored by one
study only: a second look, by another config, would choose among results. What counts for a dataset is the
config with its task alone: a study that grows by a task does not look again at the patients of the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from hssl_dist import files
from hssl_dist.errors import ConfigError
from hssl_dist.records import Manifest, Record
from hssl_dist.sampling.splits import split_manifest

if TYPE_CHECKING:
    from hssl_dist.config.study import StudyConfig

_WHERE_NOT_WHAT = {
    "store", "cache", "runs", "output", "tracking", "runner", "ray", "threads", "checkpoint", "look_again",
    "only",
}  # fmt: skip
"""Keys that do not make a study another one."""

_INSTEAD = {"test": "report that one", "validation": "keep the split that it was tuned with"}


class Look(Record):
    """A study that scored patients: when it first did so (UTC), under which config."""

    study: str
    config: str
    part: Literal["validation", "test"]
    patients: tuple[str, ...]
    first_at: str


class Ledger:
    """The looks of one study at its tasks' patients, and those before it."""

    def __init__(self, config: StudyConfig, manifests: Mapping[str, Manifest]) -> None:
        self._config, self.config_hash = config, config.hash(_WHERE_NOT_WHAT)
        self._hashes = {
            task.dataset: config.model_copy(update={"tasks": (task,)}).hash(_WHERE_NOT_WHAT)
            for task in config.tasks
        }
        self._patients = {
            task.dataset: getattr(split_manifest(manifests[task.dataset], config.split), config.part)
            for task in config.tasks
        }

    def check(self) -> None:
        """Raise ConfigError if a task has no patient to score, or if some of its test patients were scored by
        a study of another config, as test patients or, by another split, as validation patients.
        """
        part = self._config.part
        for dataset, patients in self._patients.items():
            if not patients:
                raise ConfigError(f"{dataset!r} has no {part} patient to score; change split or part")
            if part == "validation" or self._config.look_again:
                continue
            for look in self._overlapping(dataset):
                if look.part == "test" and look.config == self._hashes[dataset]:
                    continue
                seen = len(set(look.patients) & set(patients))
                raise ConfigError(
                    f"{seen} of the {len(patients)} test patients of {dataset!r} were scored as {look.part} "
                    f"patients by the study {look.study!r} of another config ({look.config[:8]}) on "
                    f"{look.first_at}; {_INSTEAD[look.part]}, or set look_again, which the report tells"
                )

    def note(self) -> None:
        """Write that this study looks, before it does; once for a config and its patients."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        asked, _ = self._config.asked
        for dataset in sorted(asked):
            patients = self._patients[dataset]
            looks = self._read(dataset)
            config = self._hashes[dataset]
            if any(look.config == config and look.patients == patients for look in looks):
                continue
            new = Look(
                study=self._config.name,
                config=config,
                part=self._config.part,
                patients=patients,
                first_at=now,
            )
            entries = [look.model_dump(mode="json") for look in (*looks, new)]
            files.write(self._url(dataset), (json.dumps(entries, indent=1) + "\n").encode())

    def summary(self) -> dict[str, Any]:
        """By dataset: how many patients are scored, and how many configs have scored some of them so far;
        of test patients also those that scored them as validation patients.
        """
        return {
            dataset: {"patients": len(patients), "looks": len(self._overlapping(dataset))}
            for dataset, patients in self._patients.items()
        }

    def _overlapping(self, dataset: str) -> list[Look]:
        """The looks at some of the patients; a study on validation patients does not mind those of tests."""
        patients, test = set(self._patients[dataset]), self._config.part == "test"
        return [
            look
            for look in self._read(dataset)
            if (test or look.part == "validation") and patients & set(look.patients)
        ]

    def _read(self, dataset: str) -> Sequence[Look]:
        url = self._url(dataset)
        if not files.exists(url):
            return []
        return [Look.model_validate(entry) for entry in json.loads(files.read(url))]

    def _url(self, dataset: str) -> str:
        return files.join(self._config.runs, "reporting", f"{dataset}.json")
