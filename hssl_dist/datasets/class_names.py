"""The names of a challenge's classes, from its `dataset.json` alone: the Decathlon's form or nnU-Net's."""

from __future__ import annotations

import re

from pydantic import BaseModel

from hssl_dist import files
from hssl_dist.datasets.contract import read_description
from hssl_dist.datasets.nnunet import named_values
from hssl_dist.errors import ConfigError
from hssl_dist.records import distinct

_FILE = "dataset.json"
_VALUE = re.compile(r"\d{1,9}")


class _Named(BaseModel):
    labels: dict[str, int | str | list[int]]


def class_names(url: str) -> dict[int, str]:
    """Names by label value, without the background, of a challenge folder or its `dataset.json`.

    The Decathlon maps values to names, nnU-Net names to values. Raises MissingError if there is no such file,
    and ConfigError if it makes no sense, gives two values one name or has labels that overlap.
    """
    path = url if url.endswith(".json") else files.join(url, _FILE)
    labels = read_description(path, _Named).labels
    if all(_VALUE.fullmatch(key) for key in labels):
        try:
            return distinct({int(key): str(name) for key, name in labels.items() if int(key)})
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from None
    values: dict[str, int | list[int]] = {}
    for name, value in labels.items():
        if isinstance(value, str):
            raise ConfigError(f"{path}: label {name!r} is {value!r}, which is no whole number")
        values[name] = value
    return named_values(values, path)
