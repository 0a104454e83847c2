"""Fixed splits: JSON with lists of patients, for a split that others have published.

    {"train": ["p01", "p02"], "validation": ["p03"], "test": ["p04"]}

Parts that are left out are empty. One file may serve several datasets, each below its name.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from hssl_dist import files
from hssl_dist.config.parts import Part
from hssl_dist.errors import ConfigError, MissingError, StorageError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_NAMED = 5


class FixedSplit(Part):
    """The patients of each part, as a file lists them."""

    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()


def read_fixed_split(url: str, dataset: str, labelled: Collection[str]) -> FixedSplit:
    """The split of a file, which has each labelled patient of the dataset in exactly one part.

    A dataset that nobody has a label in need not be in a file by datasets: its parts are empty then.
    Raises MissingError if there is no such file, and ConfigError that names the patients if it lists some
    the dataset has no labelled case of, some twice, or not all of them.
    """
    content = _read(url)
    if isinstance(content, dict) and isinstance(content.get(dataset), dict):
        content = content[dataset]
    elif not labelled:
        return FixedSplit()
    split = _checked(url, dataset, content)
    listed = [*split.train, *split.validation, *split.test]
    known = set(labelled)
    problems = (
        ("lists", "twice", {name for name in listed if listed.count(name) > 1}, "leave each in one part"),
        (
            "lists",
            f"without a labelled case in dataset {dataset!r}",
            set(listed) - known,
            "take them out, or preprocess them",
        ),
        (
            "does not list",
            f"who have labelled cases in dataset {dataset!r}",
            known - set(listed),
            "put each into a part",
        ),
    )
    for verb, what, patients, remedy in problems:
        if patients:
            raise ConfigError(f"split.file {url} {verb} {count_patients(sorted(patients))} {what}; {remedy}")
    return split


def count_patients(names: Sequence[str]) -> str:
    """`2 patients ('a', 'b')`, at the most a few of them by name."""
    more = ", ..." if len(names) > _NAMED else ""
    number = f"{len(names)} patient{'s' if len(names) > 1 else ''}"
    return f"{number} ({', '.join(map(repr, names[:_NAMED]))}{more})"


def named_datasets(url: str) -> frozenset[str]:
    """The datasets that a file has splits for by name: none if it is of one dataset. Raises as above."""
    content = _read(url)
    if not isinstance(content, dict):
        return frozenset()
    return frozenset(name for name, entry in content.items() if isinstance(entry, dict))


def _read(url: str) -> Any:
    """A file's JSON."""
    try:
        return json.loads(files.read(url))
    except FileNotFoundError:
        raise MissingError(f"split.file {url} is not there; give the path or URL of a JSON file") from None
    except StorageError:
        raise
    except OSError as error:
        raise ConfigError(f"split.file {url} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"split.file {url} is not JSON: {error}; write it anew") from None


def _checked(url: str, dataset: str, content: Any) -> FixedSplit:
    """The lists of patients in what a file says of a dataset."""
    try:
        return FixedSplit.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "content"
        raise ConfigError(
            f"split.file {url} has no split for dataset {dataset!r}: {key}: {first['msg'].lower()}; give "
            "lists of patients as train, validation and test, for several datasets each below its name"
        ) from None
