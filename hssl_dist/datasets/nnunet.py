"""nnU-Net raw v2: `imagesTr/<case>_0000.nii.gz` per channel, `labelsTr/<case>.nii.gz`, `dataset.json`,
whose `file_ending` may be that of any format.

`imagesTs` (and `labelsTs`) may be there; its cases are test cases. A missing channel or image is left for the
reader to report: that case is quarantined, the others go on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AliasChoices, BaseModel, Field

from hssl_dist import files
from hssl_dist.config.preprocess import DatasetConfig
from hssl_dist.datasets.contract import (
    VOLUME_ENDINGS,
    Contents,
    FoundCase,
    read_description,
    unused_files,
    volumes,
)
from hssl_dist.errors import ConfigError
from hssl_dist.records import SplitName

_FOLDERS: tuple[tuple[str, str, SplitName], ...] = (
    ("imagesTr", "labelsTr", "train"),
    ("imagesTs", "labelsTs", "test"),
)


class _Description(BaseModel):
    channel_names: Annotated[
        dict[int, str], Field(validation_alias=AliasChoices("channel_names", "modality"))
    ]
    labels: dict[str, int | list[int]]
    file_ending: str = ".nii.gz"


def find_nnunet(config: DatasetConfig, root: str) -> Contents:
    """The cases of the image folders, with the classes and channels of `dataset.json`."""
    url = files.join(root, "dataset.json")
    description = read_description(url, _Description)
    if description.file_ending not in VOLUME_ENDINGS:
        known = ", ".join(VOLUME_ENDINGS)
        raise ConfigError(f"{url}: file_ending is {description.file_ending!r}; {known} can be read")
    channels = tuple(name for _, name in sorted(description.channel_names.items()))
    cases: list[FoundCase] = []
    for images, labels, split in _FOLDERS:
        cases += _cases(root, (images, labels), split, len(channels), description.file_ending)
    classes = config.classes or named_values(description.labels, url)
    unused = unused_files(
        root, (folder for images, labels, _ in _FOLDERS for folder in (images, labels)), cases
    )
    return Contents(tuple(cases), classes, channels, unused)


def named_values(labels: Mapping[str, int | list[int]], url: str) -> dict[int, str]:
    """Names by label value. Overlapping regions and the ignore label have no single class per voxel."""
    classes: dict[int, str] = {}
    for name, value in labels.items():
        if isinstance(value, list):
            raise ConfigError(
                f"{url}: label {name!r} is a region of the values {value}; regions are not supported: "
                "name each value in the config's `classes`"
            )
        if name == "ignore":
            raise ConfigError(
                f"{url}: value {value} is an ignore label, which is not supported: "
                "remove those cases, or name every value in the config's `classes`"
            )
        if value in classes:
            raise ConfigError(f"{url}: {classes[value]!r} and {name!r} are both value {value}")
        if value != 0:
            classes[value] = name
    return classes


def _cases(
    root: str, folders: tuple[str, str], split: SplitName, channels: int, ending: str
) -> list[FoundCase]:
    images, labels = (files.join(root, folder) for folder in folders)
    annotated = volumes(labels)
    names = set(annotated)
    for stem, url in volumes(images).items():
        match = re.fullmatch(r"(.+)_(\d{4})", stem)
        if match is None:
            raise ConfigError(f"{url} does not end in its channel's number, as _0000{ending} does; rename it")
        if int(match[2]) >= channels:
            raise ConfigError(f"{url} is channel {int(match[2])}; dataset.json declares {channels} channels")
        names.add(match[1])
    return [
        FoundCase(
            name=name,
            images=tuple(files.join(images, f"{name}_{index:04d}{ending}") for index in range(channels)),
            label=annotated.get(name),
            split=split,
        )
        for name in sorted(names)
    ]
