"""The surveys of a dataset, kept in its folder of the store so that no case is surveyed twice.

A sealed file that is replaced as a whole. It is a cache: without it, or with a damaged one, cases are
surveyed again.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from hssl_dist import files
from hssl_dist.errors import CorruptError
from hssl_dist.imaging import CaseSurvey
from hssl_dist.records import Record
from hssl_dist.store.layout import dataset_url
from hssl_dist.store.sealed import seal, unseal


class SurveyEntry(Record):
    """A survey and the key of what it was made from."""

    key: str
    survey: CaseSurvey


def read_surveys(root: str, dataset: str) -> dict[str, CaseSurvey]:
    """The surveys that are kept, by key."""
    url = _url(root, dataset)
    try:
        entries = [SurveyEntry.model_validate_json(line) for line in unseal(url, files.read(url))]
    except (FileNotFoundError, CorruptError, ValidationError):
        return {}
    return {entry.key: entry.survey for entry in entries}


def write_surveys(root: str, dataset: str, surveys: Mapping[str, CaseSurvey]) -> None:
    """Keep these surveys and no others."""
    entries = [SurveyEntry(key=key, survey=survey) for key, survey in sorted(surveys.items())]
    files.write(_url(root, dataset), seal(entries))


def _url(root: str, dataset: str) -> str:
    return files.join(dataset_url(root, dataset), "survey.jsonl")
