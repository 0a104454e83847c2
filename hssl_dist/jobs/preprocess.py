"""`hssl preprocess`: challenge datasets in, a store out. Doing it again does only what is missing or changed.

For each dataset: list the cases, hash their files, survey the new ones, settle the recipe, store the cases
whose key (content and recipe) is not committed, replace the manifest. At last, look for scans that several
datasets have, and write the quality reports. Whatever was done before a kill is kept; the manifest never
lists a case that is being rewritten, and no two jobs write a dataset at once (see `store_owner`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hssl_dist import __version__, files, store
from hssl_dist.datasets import dataset_root, discover
from hssl_dist.errors import CorruptError, HsslError, MissingError, StoreError
from hssl_dist.imaging import CaseSurvey, Recipe, resolve_recipe
from hssl_dist.imaging.recipe import RECIPE_VERSION
from hssl_dist.jobs.batches import Workers, batched
from hssl_dist.jobs.preprocess_cases import (
    Assignment,
    Refused,
    memory_bytes,
    store_cases,
    survey_cases,
    survey_memory_bytes,
)
from hssl_dist.jobs.preprocess_report import write_report
from hssl_dist.jobs.preprocess_result import Result, add_overlaps, check_failure_rates, outcome
from hssl_dist.jobs.quarantine import Quarantine
from hssl_dist.jobs.sources import HashedCase, hash_cases
from hssl_dist.jobs.store_owner import owned
from hssl_dist.jobs.surveys import read_surveys, write_surveys
from hssl_dist.records import CaseRecord, Manifest, ManifestHeader, Outcome, content_hash
from hssl_dist.store.layout import ENCODING_VERSION

if TYPE_CHECKING:
    from hssl_dist.config.preprocess import DatasetConfig, PreprocessConfig
    from hssl_dist.console import Console
    from hssl_dist.datasets import Dataset

_SAVE_INTERVAL_S = 5.0
_PARALLEL = 8
"""Headers that are read at once."""


@dataclass(frozen=True, slots=True)
class _Work:
    """One dataset to preprocess."""

    config: DatasetConfig
    dataset: Dataset
    job: PreprocessConfig
    workers: Workers
    console: Console
    check_owner: Callable[[], None]

    @property
    def root(self) -> str:
        """The store."""
        return self.job.store.url

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self.config.name


def run(config: PreprocessConfig, console: Console) -> Outcome:
    """Preprocess all datasets of the config; Ray is only started if a case is to be surveyed or stored.

    Raises UsageError for a source that is not as the config says, before anything is written, StoreError for
    a store that cannot be written, and TooManyFailuresError, after everything is written, if too many cases
    of a dataset are in quarantine.
    """
    root = config.store.url
    found = [discover(dataset, config.source_root) for dataset in config.datasets]
    try:
        with owned(root, [dataset.name for dataset in config.datasets], console) as check_owner:
            results = _preprocess_all(config, found, console, check_owner)
    except HsslError:
        raise
    except OSError as error:  # of a disk
        raise StoreError(
            f"the store {files.shown(root)} could not be written: {error}; {files.remedy(error)}"
        ) from error
    check_failure_rates(results, config.max_failure_rate)
    return outcome(root, results)


def _preprocess_all(
    config: PreprocessConfig, found: Sequence[Dataset], console: Console, check_owner: Callable[[], None]
) -> list[Result]:
    """All datasets, one after the other, then what only all of them together tell."""
    with ExitStack() as stack:
        workers = Workers(config.ray, console, stack)
        results = [
            _preprocess(_Work(dataset_config, dataset, config, workers, console, check_owner))
            for dataset_config, dataset in zip(config.datasets, found, strict=True)
        ]
    results = add_overlaps(results, config.store.url, console)
    for result in results:
        if result.manifest is not None:
            write_report(config.store.url, result.manifest, result.quarantined, result.oddities)
    return results


def _preprocess(work: _Work) -> Result:
    cases = hash_cases(work.dataset.cases, dataset_root(work.config, work.job.source_root), work.console)
    quarantine = Quarantine(work.root, work.name)
    previous = _previous_manifest(work)
    surveys = _survey(work, cases, quarantine)
    recipe = _recipe(work, surveys)
    keys = {case.id: _key(case, recipe) for case in cases if case.id in surveys} if recipe else {}
    there = _records(work, previous, keys)
    committed = {case_id: record for case_id, record in there.items() if keys.get(case_id) == record.key}
    work.check_owner()
    removed = _withdraw(work, previous, committed, cases)

    for case in cases:
        if case.id in committed:
            committed[case.id] = _redescribe(work, case, surveys[case.id], committed[case.id])
    todo = [case for case in cases if case.id in keys and case.id not in committed]
    todo = [case for case in todo if not quarantine.holds(case, keys[case.id])]
    written = (
        _store(work, recipe, surveys, [(case, keys[case.id]) for case in todo], quarantine) if recipe else {}
    )

    work.check_owner()
    quarantine.settle()
    for quarantined in quarantine.cases:
        if quarantined.id in there:
            store.remove_case(work.root, work.name, quarantined.id)
    manifest = None
    if recipe is not None:
        header = _header(work, recipe)
        manifest = store.write_manifest(work.root, header, [*committed.values(), *written.values()])
    return Result(
        name=work.name,
        cases=len(cases),
        manifest=manifest,
        written=len(written),
        removed=removed,
        quarantined=quarantine.cases,
        unused=work.dataset.unused,
    )


# ------------------------------------------------------------------------------------------------- surveying


def _survey(work: _Work, cases: Sequence[HashedCase], quarantine: Quarantine) -> dict[str, CaseSurvey]:
    """Surveys of all cases that can be read, by id; the others are in quarantine."""
    known = read_surveys(work.root, work.name)
    keys = {case.id: _survey_key(work, case) for case in cases}
    surveys = {case.id: known[keys[case.id]] for case in cases if keys[case.id] in known}
    new = [case for case in cases if case.id not in surveys and not quarantine.holds(case, keys[case.id])]
    for case in new:
        if case.problem is not None:
            quarantine.add(case, keys[case.id], case.problem)
    readable = {case.id: case for case in new if case.problem is None}
    if readable:
        with ThreadPoolExecutor(_PARALLEL) as pool:
            needs = pool.map(lambda case: survey_memory_bytes(case.case, case.size_bytes), readable.values())
            memory = [(case.case, need) for case, need in zip(readable.values(), needs, strict=True)]
        arguments = (work.dataset.classes, work.job.max_voxels)
        saved_s = time.monotonic()
        with work.console.track(f"{work.name}: survey", len(readable)) as advance:
            for result in work.workers.run(survey_cases, batched(memory), *arguments):
                if isinstance(result, Refused):
                    case = readable[result.case_id]
                    quarantine.add(case, keys[case.id], result.reason)
                else:
                    surveys[result.id] = result
                advance(1)
                if time.monotonic() - saved_s > _SAVE_INTERVAL_S:
                    write_surveys(work.root, work.name, _by_key(surveys, keys))
                    saved_s = time.monotonic()
    if (kept := _by_key(surveys, keys)).keys() != known.keys():
        write_surveys(work.root, work.name, kept)
    return surveys


def _survey_key(work: _Work, case: HashedCase) -> str:
    """Identifies all a survey, or a refusal to survey, depends on."""
    return content_hash(
        {
            "id": case.id,
            "content": case.content,
            "classes": sorted(work.dataset.classes),
            "modalities": work.dataset.modalities,
            "max_voxels": work.job.max_voxels,
            "version": RECIPE_VERSION,
        }
    )


def _by_key(surveys: Mapping[str, CaseSurvey], keys: Mapping[str, str]) -> dict[str, CaseSurvey]:
    return {keys[case_id]: survey for case_id, survey in surveys.items()}


def _recipe(work: _Work, surveys: Mapping[str, CaseSurvey]) -> Recipe | None:
    """The dataset's recipe; None if no case can be read."""
    if not surveys:
        return None
    dataset = work.dataset
    return resolve_recipe(
        work.config, dataset.classes, dataset.modalities, list(surveys.values()), work.job.storage
    )


# --------------------------------------------------------------------------------------------------- storing


def _key(case: HashedCase, recipe: Recipe) -> str:
    """Identifies all a stored case's voxels depend on."""
    return content_hash({"content": case.content, "recipe": recipe.hash, "encoding": ENCODING_VERSION})


def _previous_manifest(work: _Work) -> Manifest | None:
    """The dataset's manifest as an earlier run left it. A damaged one is made anew from the records."""
    try:
        return store.read_whole_manifest(work.root, work.name)
    except MissingError:
        return None
    except CorruptError as error:
        work.console.warn(f"{error}; it is being made anew from the commit records")
        return None


def _records(work: _Work, previous: Manifest | None, keys: Mapping[str, str]) -> dict[str, CaseRecord]:
    """Records of what is stored of the present cases, whatever their key: the manifest's, and those an
    unfinished run has committed since. A case whose commit record is gone is not stored, listed or not.
    """
    there = store.recorded_cases(work.root, work.name)
    listed = {record.id: record for record in previous.cases if record.id in there} if previous else {}
    stale = [case_id for case_id, key in keys.items() if case_id not in listed or listed[case_id].key != key]
    return {**listed, **store.read_records(work.root, work.name, stale)}


def _withdraw(
    work: _Work,
    previous: Manifest | None,
    committed: Mapping[str, CaseRecord],
    cases: Sequence[HashedCase],
) -> tuple[str, ...]:
    """Take what is about to change, and what is gone, out of the manifest; returns the ids of those gone."""
    if previous is None:
        return ()
    leaving = [record.id for record in previous.cases if record.id not in committed]
    if leaving:
        store.withdraw(work.root, previous, leaving)
    return tuple(sorted(set(leaving) - {case.id for case in cases}))


def _redescribe(work: _Work, case: HashedCase, survey: CaseSurvey, record: CaseRecord) -> CaseRecord:
    """The record with what the config, the layout and the survey say of the case now; its voxels stay."""
    described = record.model_copy(
        update={
            "patient": case.case.patient,
            "task": _task(work),
            "group": work.config.group,
            "split": case.case.split,
            "sources": case.sources,
            "fingerprints": survey.fingerprints,
        }
    )
    if described != record:
        store.write_record(work.root, described)
    return described


def _store(
    work: _Work,
    recipe: Recipe,
    surveys: Mapping[str, CaseSurvey],
    todo: Sequence[tuple[HashedCase, str]],
    quarantine: Quarantine,
) -> dict[str, CaseRecord]:
    """Store the cases under their keys; returns the records of those that could be, by id."""
    written: dict[str, CaseRecord] = {}
    if not todo:
        return written
    by_id = {case.id: (case, key) for case, key in todo}
    sized = [
        (
            Assignment(
                case.case, _task(work), work.config.group, case.sources, surveys[case.id].fingerprints, key
            ),
            memory_bytes(*_voxels(surveys[case.id], recipe)),
        )
        for case, key in todo
    ]
    arguments = (work.root, recipe, work.job.storage, work.job.max_voxels)
    with work.console.track(f"{work.name}: store", len(todo)) as advance:
        for result in work.workers.run(store_cases, batched(sized), *arguments):
            if isinstance(result, Refused):
                quarantine.add(*by_id[result.case_id], result.reason)
            else:
                written[result.id] = result
            work.check_owner()
            advance(1)
    return written


def _voxels(survey: CaseSurvey, recipe: Recipe) -> tuple[int, int]:
    """Voxels, over all channels, of a case as it is and as it is stored if nothing can be cropped."""
    voxels = len(recipe.channels) * math.prod(survey.shape)
    growth = math.prod(survey.spacing_mm) / math.prod(recipe.spacing_mm)
    return voxels, math.ceil(voxels * growth)


def _task(work: _Work) -> str:
    return work.config.task or work.name


def _header(work: _Work, recipe: Recipe) -> ManifestHeader:
    return ManifestHeader(
        dataset=work.name,
        task=_task(work),
        group=work.config.group,
        classes=work.dataset.classes,
        channels=work.dataset.modalities,
        recipe=recipe.model_dump(mode="json"),
        recipe_hash=recipe.hash,
        code_version=__version__,
    )
