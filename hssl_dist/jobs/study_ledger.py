"""Who has looked at which patients, before a study looks at its own.

Validation patients may be scored as often as one likes, which is counted. Test patients are scored by one
study only: a second look, by another config, would choose among results. What counts for a dataset is the
config with its task alone: a study that grows by a task does not look again at the patients of the others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from hssl_dist.errors import ConfigError
from hssl_dist.jobs.looks import Look, now, read_looks, withdraw_look, write_look
from hssl_dist.records import Manifest
from hssl_dist.sampling.splits import split_manifest

if TYPE_CHECKING:
    from hssl_dist.config.study import StudyConfig

_WHERE_NOT_WHAT = dict.fromkeys(
    (
        "store", "cache", "runs", "output", "tracking", "runner", "ray", "threads", "checkpoint",
        "look_again", "only", "pretrained_by",
    ),
    True,
) | {
    "pretrain": {"acceleration"},
    "tasks": {"__all__": {"training": {"acceleration"}}},
}  # fmt: skip
"""Keys that do not make a study another one."""
_SHARED = {"cell_seeds": True}
"""Left out, too, where it says what all studies were before this key, whose hash stays what it was."""

_INSTEAD = {"test": "report that one", "validation": "keep the split that it was tuned with"}


def identifying_hash(config: StudyConfig) -> str:
    """The hash of what makes a study this one and no other."""
    return config.hash(_WHERE_NOT_WHAT | (_SHARED if config.cell_seeds == "shared" else {}))


class Ledger:
    """The looks of one study at its tasks' patients, and those of others."""

    def __init__(self, config: StudyConfig, manifests: Mapping[str, Manifest]) -> None:
        self._config, self.config_hash = config, identifying_hash(config)
        self._own = {
            task.dataset: Look(
                study=config.name,
                config=identifying_hash(config.model_copy(update={"tasks": (task,)})),
                part=config.part,
                patients=getattr(split_manifest(manifests[task.dataset], config.split), config.part),
                first_at=now(),
            )
            for task in config.tasks
        }

    def check(self) -> None:
        """Raise ConfigError if a task has no patient to score, or if some of its test patients were scored by
        a study of another config, as test patients or, by another split, as validation patients. A study that
        has looked already is not asked again, whoever has looked since.
        """
        for dataset, own in self._own.items():
            if not own.patients:
                raise ConfigError(f"{dataset!r} has no {own.part} patient to score; change split or part")
        self._refuse_others([dataset for dataset in self._own if not self._noted(dataset)])

    def note(self) -> None:
        """Write that this study looks, before it does; once for a config and its patients.

        Raises ConfigError as `check` does, which it asks again: hours of pretraining lie between, and of two
        studies that note at the same moment each sees the other's look, so that at most one goes on.
        """
        new = {
            dataset: self._own[dataset].model_copy(update={"first_at": now()})
            for dataset in sorted(self._config.only.tasks or self._own)
            if not self._noted(dataset)
        }
        self._refuse_others(new)
        for dataset, look in new.items():
            write_look(self._config.runs, dataset, look)
        try:
            self._refuse_others(new)
        except ConfigError:
            for dataset, look in new.items():
                withdraw_look(self._config.runs, dataset, look)
            raise

    def summary(self) -> dict[str, Any]:
        """By dataset: how many patients are scored, and how many configs have scored some of them so far; of
        test patients also those that scored them as validation patients, and, as `evaluated`, the models that
        `hssl evaluate` had scored some of them with before this study did.
        """
        return {dataset: self._summary(dataset) for dataset in self._own}

    def _summary(self, dataset: str) -> dict[str, Any]:
        looks = self._overlapping(dataset)
        studies = [look for look in looks if look.by == "study"]
        first = next((look.first_at for look in studies if look.is_of(self._own[dataset])), now())
        evaluated = [look.study for look in looks if look.by == "evaluate" and look.first_at <= first]
        found: dict[str, Any] = {"patients": len(self._own[dataset].patients), "looks": len(studies)}
        return found | ({"evaluated": evaluated} if evaluated else {})

    def _refuse_others(self, datasets: Collection[str]) -> None:
        if self._config.part == "validation" or self._config.look_again:
            return
        for dataset in datasets:
            own = self._own[dataset]
            for look in self._overlapping(dataset):
                if look.by == "evaluate" or (look.part == "test" and look.config == own.config):
                    continue
                seen = len(set(look.patients) & set(own.patients))
                raise ConfigError(
                    f"{seen} of the {len(own.patients)} test patients of {dataset!r} were scored as "
                    f"{look.part} patients by the study {look.study!r} of another config ({look.config[:8]}) "
                    f"on {look.first_at}; {_INSTEAD[look.part]}, or set look_again, which the report tells"
                )

    def _noted(self, dataset: str) -> bool:
        return any(look.is_of(self._own[dataset]) for look in read_looks(self._config.runs, dataset))

    def _overlapping(self, dataset: str) -> list[Look]:
        """The looks at some of the patients; a study on validation patients does not mind those of tests."""
        patients, test = set(self._own[dataset].patients), self._config.part == "test"
        return [
            look
            for look in read_looks(self._config.runs, dataset)
            if (test or look.part == "validation") and patients & set(look.patients)
        ]
