"""What every layout gives and what a dataset is; the pieces layouts share.

A layout is a function `(config, root) -> Contents`: it lists files and reads the dataset's own description,
never an image. `discover` (in `discovery`) turns the contents into a `Dataset`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from hssl_dist import files
from hssl_dist.errors import ConfigError, MissingError, StorageError
from hssl_dist.records import Case, SplitName

NIFTI_ENDINGS = (".nii.gz", ".nii")
VOLUME_ENDINGS = (*NIFTI_ENDINGS, ".nrrd", ".mha")
DETACHED_ENDINGS = (".nhdr", ".mhd")
"""Headers without their voxels: listed, so that the reader refuses them and none is overlooked."""

Description = TypeVar("Description", bound=BaseModel)

_LONGEST_DESCRIPTION_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Dataset:
    """The cases of a dataset sorted by id, the names of its label values, and `ct` or `mr` per channel.

    `unused` are the files among the images and labels that belong to no case.
    """

    name: str
    cases: tuple[Case, ...]
    classes: dict[int, str]
    modalities: tuple[str, ...]
    unused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FoundCase:
    """A case as a layout names it; the patient is the case itself if the layout does not say."""

    name: str
    images: tuple[str, ...]
    label: str | None
    split: SplitName = "train"
    patient: str | None = None


@dataclass(frozen=True, slots=True)
class Contents:
    """All a layout finds: cases, label values without the background (the config's, if it has any), each
    channel's own name, and the files that no case uses though they lie where images and labels do.
    """

    cases: tuple[FoundCase, ...]
    classes: dict[int, str]
    channels: tuple[str, ...]
    unused: tuple[str, ...] = ()


def stem(name: str, endings: tuple[str, ...] = NIFTI_ENDINGS) -> str | None:
    """A file's name without its ending; None for other files and for hidden ones (`._x` of macOS)."""
    if name.startswith("."):
        return None
    return next((name.removesuffix(end) for end in endings if name.endswith(end)), None)


def check_name(url: str) -> None:
    """Raise ConfigError for a name that no record can hold, or no file can have."""
    if any(unicodedata.category(char) == "Cs" for char in url):
        raise ConfigError(f"the name of {url!a} is not UTF-8; rename it")
    if "\0" in url:
        raise ConfigError(f"the name of {url!a} has a zero byte, which no file's can have; mend it")


def volumes(folder: str) -> dict[str, str]:
    """URLs of the files of all formats directly in a folder, by their names without ending."""
    found: dict[str, str] = {}
    for name in files.listing(folder):
        key = stem(name, VOLUME_ENDINGS + DETACHED_ENDINGS)
        if key is None:
            continue
        check_name(files.join(folder, name))
        if key in found:
            raise ConfigError(f"{files.join(folder, name)} and {found[key]} are the same case; remove one")
        found[key] = files.join(folder, name)
    return found


def unused_files(root: str, folders: Iterable[str], cases: Iterable[FoundCase]) -> tuple[str, ...]:
    """What lies directly in these folders below `root` and belongs to no case, hidden files aside."""
    used = {url.rstrip("/") for case in cases for url in (*case.images, case.label or "")}
    urls = (files.join(root, folder, name) for folder in folders for name in _visible(root, folder))
    return tuple(files.relative(url, root) for url in urls if url not in used)


def _visible(root: str, folder: str) -> list[str]:
    return [name for name in files.listing(files.join(root, folder)) if not name.startswith(".")]


def below(root: str, path: str) -> str:
    """The URL of a path that a description gives relative to `root`; it must not lead out of it."""
    plain = PurePosixPath(path.replace("\\", "/"))
    if "://" in path or "\0" in path or plain.is_absolute() or ".." in plain.parts:
        raise ConfigError(
            f"{files.join(root, 'dataset.json')} names {path!r}, which is outside of the dataset"
        )
    return files.join(root, str(plain))


def read_description(url: str, kind: type[Description]) -> Description:
    """A dataset's own description, checked. Raises MissingError, or ConfigError with the first wrong key."""
    try:
        with files.open_read(url) as stream:
            text = stream.read(_LONGEST_DESCRIPTION_BYTES + 1)
        if len(text) > _LONGEST_DESCRIPTION_BYTES:
            raise ConfigError(
                f"{url} has more than {_LONGEST_DESCRIPTION_BYTES >> 20} MiB; it describes no dataset"
            )
        return kind.model_validate_json(text)
    except FileNotFoundError:
        raise MissingError(f"there is no {url}; the layout needs it") from None
    except StorageError:
        raise
    except OSError as error:
        raise ConfigError(f"{url} cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{url}{f': {place}' if place else ''}: {first['msg']}") from None


def listed(values: Iterable[object]) -> str:
    """A few values for a message."""
    shown = [str(value) for value in values]
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
