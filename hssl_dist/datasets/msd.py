"""Medical Segmentation Decathlon: `dataset.json` lists the cases of `imagesTr`, `labelsTr` and `imagesTs`.

Several modalities are the channels of one 4D file. `imagesTs` is often left out when copying: without that
folder the test cases it would hold are left out as well.
"""

from __future__ import annotations

from pydantic import BaseModel

from hssl_dist import files
from hssl_dist.config.preprocess import DatasetConfig
from hssl_dist.datasets.contract import (
    Contents,
    FoundCase,
    below,
    read_description,
    stem,
    unused_files,
)
from hssl_dist.errors import ConfigError
from hssl_dist.records import SplitName


class _Entry(BaseModel):
    image: str
    label: str | None = None


class _Description(BaseModel):
    modality: dict[int, str]
    labels: dict[int, str]
    training: list[_Entry]
    test: list[str | _Entry] = []


def find_msd(config: DatasetConfig, root: str) -> Contents:
    """The cases that `dataset.json` lists."""
    description = read_description(files.join(root, "dataset.json"), _Description)
    listed = [_found(root, entry, "train") for entry in description.training]
    if files.is_folder(files.join(root, "imagesTs")):
        tests = [_Entry(image=entry) if isinstance(entry, str) else entry for entry in description.test]
        listed += [_found(root, entry, "test") for entry in tests]
    cases = tuple(case for case in listed if case is not None)
    return Contents(
        cases=cases,
        classes=config.classes or {value: name for value, name in description.labels.items() if value != 0},
        channels=tuple(name for _, name in sorted(description.modality.items())),
        unused=unused_files(root, ("imagesTr", "labelsTr", "imagesTs"), cases),
    )


def _found(root: str, entry: _Entry, split: SplitName) -> FoundCase | None:
    """The case of an entry; None for hidden files, which macOS archives list beside the real ones."""
    image = below(root, entry.image)
    file = image.rsplit("/", 1)[-1]
    if file.startswith("."):
        return None
    name = stem(file)
    if name is None:
        raise ConfigError(f"{files.join(root, 'dataset.json')} names {entry.image!r}; only NIfTI can be read")
    label = below(root, entry.label) if entry.label is not None else None
    return FoundCase(name, (image,), label, split)
