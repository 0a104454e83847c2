"""From a dataset's config to its cases: ids, patients, modalities and classes, whatever the layout."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable

from hssl_dist import files
from hssl_dist.config.preprocess import DatasetConfig
from hssl_dist.datasets.bids import find_bids
from hssl_dist.datasets.contract import Contents, Dataset, FoundCase, check_name
from hssl_dist.datasets.dicom_tree import find_dicom
from hssl_dist.datasets.folder import find_folder
from hssl_dist.datasets.msd import find_msd
from hssl_dist.datasets.nnunet import find_nnunet
from hssl_dist.errors import ConfigError, MissingError
from hssl_dist.records import Case, distinct

LAYOUTS: dict[str, Callable[[DatasetConfig, str], Contents]] = {
    "msd": find_msd,
    "nnunet": find_nnunet,
    "bids": find_bids,
    "folder": find_folder,
    "dicom": find_dicom,
}

_LONGEST_ID = 120

MAX_LABEL = 255
"""Labels are stored as uint8."""


def discover(config: DatasetConfig, source_root: str) -> Dataset:
    """List a dataset's cases, sorted by id; reads descriptions but no image.

    `source_root` is what a relative `config.source` starts from. Raises MissingError if the source, its
    description or any case is missing, and ConfigError if the description or the config does not make sense.
    """
    root = dataset_root(config, source_root)
    if not files.is_folder(root):
        raise MissingError(f"dataset {config.name!r}: there is no folder {files.shown(root)}; set `source`")
    contents = LAYOUTS[config.layout](config, root)
    if not contents.cases:
        raise MissingError(
            f"dataset {config.name!r}: no case in {files.shown(root)}; is its layout `{config.layout}`?"
        )
    if not contents.channels:
        raise ConfigError(f"dataset {config.name!r}: its description names no channel; name each")
    modalities = tuple(_modality(config, channel) for channel in contents.channels)
    classes = dict(sorted(contents.classes.items()))
    _check_classes(config, contents, classes)

    cases: dict[str, Case] = {}
    for found in contents.cases:
        case = _case(config, found, modalities)
        if case.id in cases:
            raise ConfigError(
                f"dataset {config.name!r}: {cases[case.id].images[0]} and {found.images[0]} "
                f"are both case {case.id!r}; rename one"
            )
        cases[case.id] = case
    ordered = tuple(cases[key] for key in sorted(cases))
    return Dataset(config.name, ordered, classes, modalities, contents.unused)


def dataset_root(config: DatasetConfig, source_root: str) -> str:
    """The URL of the folder a dataset's files are in: its source, or the only top folder of an archive.

    Raises MissingError if the archive is not there, and ConfigError if it is damaged or hostile.
    """
    source = config.source if "://" in config.source else files.join(source_root, config.source)
    url = files.with_access(files.resolve(source), config.anonymous, config.endpoint)
    if not files.is_archive(url) or files.is_folder(url):
        return url
    try:
        return files.archive_root(url)
    except FileNotFoundError:
        raise MissingError(
            f"dataset {config.name!r}: there is no archive {files.shown(url)}; set `source`"
        ) from None


def case_id(name: str) -> str:
    """A name as a safe path segment: letters, digits, `.`, `_` and `-`, starting with a letter or digit.

    A name that is safe stays as it is. Accents are dropped, other characters become `-`; where letters of
    another script are lost, or the name is too long for a file's, a short hash of it keeps such names apart.
    """
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", ascii_name).lstrip("._-").rstrip("-")
    lost = any(unicodedata.category(char)[0] == "L" and not _has_ascii(char) for char in name)
    if lost or not safe or len(safe) > _LONGEST_ID:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        return f"{safe[:_LONGEST_ID]}-{digest}" if safe else f"case-{digest}"
    return safe


def _has_ascii(char: str) -> bool:
    return bool(unicodedata.normalize("NFKD", char).encode("ascii", "ignore"))


def _case(config: DatasetConfig, found: FoundCase, modalities: tuple[str, ...]) -> Case:
    for url in (*found.images, found.label or ""):
        check_name(url)
    identity = case_id(found.name)
    patient = found.patient or identity
    if config.patient_pattern is not None:
        match = re.search(config.patient_pattern, identity)
        if match is None or not match[1]:
            raise ConfigError(
                f"dataset {config.name!r}: patient_pattern {config.patient_pattern!r} finds no patient in "
                f"case {identity!r}"
            )
        patient = match[1]
    return Case(config.name, identity, patient, found.images, found.label, modalities, found.split)


def _modality(config: DatasetConfig, channel: str) -> str:
    """The normalisation rule of a channel: `ct` has an absolute unit, everything else is treated as `mr`."""
    if config.modality != "auto":
        return config.modality
    return "ct" if re.match(r"cta?\b|computed tomography", channel.strip().lower()) else "mr"


def _check_classes(config: DatasetConfig, contents: Contents, classes: dict[int, str]) -> None:
    if wrong := [value for value in classes if not 0 < value <= MAX_LABEL]:
        raise ConfigError(f"dataset {config.name!r}: label value {wrong[0]}; 1 to {MAX_LABEL} can be stored")
    try:
        distinct(classes)
    except ValueError as error:
        raise ConfigError(f"dataset {config.name!r}: {error}") from None
    if not classes and any(found.label is not None for found in contents.cases):
        raise ConfigError(
            f"dataset {config.name!r} has labels, but nothing names their values; give `classes`, "
            "for example {1: lesion}"
        )
