"""What is to be predicted: one file, a folder of images in any format, or a challenge's test images.

Only names are listed, and the `dataset.json` beside them is asked for its channels; no image is read. Files
that nnU-Net's raw layout would name (`case_0000.nii.gz`, `case_0001.nii.gz`) are the channels of one case.
"""

from __future__ import annotations

import itertools
import posixpath
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from hssl_dist import dicom, files
from hssl_dist.datasets.contract import (
    DETACHED_ENDINGS,
    VOLUME_ENDINGS,
    FoundCase,
    check_name,
    read_description,
    stem,
    volumes,
)
from hssl_dist.errors import ConfigError, MissingError

Layout = Literal["auto", "folder", "nnunet"]

_DESCRIPTION = "dataset.json"
_IMAGE_FOLDERS = ("imagesTs", "images")
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
_FILES_TRIED = 16
"""A folder whose first files are no DICOM is no series."""

_CT = re.compile(r"\bcta?\b|computed tomography")
_MR = re.compile(r"mri|\bmr\b|magnetic resonance|\bt1|\bt2|\bpd\b|flair|\bdwi\b|\badc\b")


@dataclass(frozen=True, slots=True)
class Inputs:
    """The cases, sorted by name, and the folder their images lie in.

    `channels` are the names that a `dataset.json` gives the channels, none if nothing says; `unused` are the
    names in the folder that belong to no case.
    """

    folder: str
    cases: tuple[FoundCase, ...]
    channels: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


class _Description(BaseModel):
    channel_names: dict[int, str] | None = None
    """nnU-Net v2's."""
    modality: dict[int, str] | None = None
    """The Decathlon's, and nnU-Net v1's."""
    file_ending: str | None = None

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels, in order."""
        return tuple(name for _, name in sorted((self.channel_names or self.modality or {}).items()))


def find_inputs(source: str, layout: Layout) -> Inputs:
    """The cases of a file, a folder, a dataset's root (its `imagesTs`) or a tar archive of those.

    `layout` says whether names ending in four digits are channels (`nnunet`) or not (`folder`); `auto` takes
    them for channels if a nnU-Net `dataset.json` says so, or if all files are named so and each case has a
    channel 0000. Raises MissingError if there is nothing, ConfigError for names that make no sense.
    """
    url = _opened(source)
    if files.is_folder(url):
        folder = _images_folder(url)
        found = _find_in(folder, layout)
        if not found.cases:
            known = ", ".join(VOLUME_ENDINGS)
            raise MissingError(
                f"there is no image in {files.shown(folder)}; known are {known} and folders of DICOM series"
            )
        return found
    if not files.exists(url):
        raise MissingError(f"there is no {files.shown(url)}; give a file or a folder of images as `input`")
    return _find_file(url, layout)


def known_modality(channel: str) -> Literal["ct", "mr"] | None:
    """What the name a dataset gives a channel tells of its modality; None if nothing."""
    name = channel.strip().lower()
    if _CT.search(name):
        return "ct"
    return "mr" if _MR.search(name) else None


# ---------------------------------------------------------------------------------------------------- folders


def _opened(source: str) -> str:
    """The URL, or that of the only top folder in the archive it names."""
    if not files.is_archive(source) or files.is_folder(source):
        return source
    try:
        return files.archive_root(source)
    except FileNotFoundError:
        raise MissingError(f"there is no archive {files.shown(source)}; give another `input`") from None


def _images_folder(url: str) -> str:
    if not volumes(url):
        for name in _IMAGE_FOLDERS:
            if files.is_folder(files.join(url, name)):
                return files.join(url, name)
    return url


def _find_in(folder: str, layout: Layout) -> Inputs:
    description = _describe(folder)
    found = volumes(folder)
    if found and _has_suffixes(found, layout, description):
        cases = _grouped(found, description)
    else:
        cases = [FoundCase(name, (url,), None) for name, url in found.items()]
        cases += [FoundCase(name, (dicom.series_url(url),), None) for name, url in _series(folder).items()]
    _check_names(cases)
    ordered = tuple(sorted(cases, key=lambda case: case.name))
    return Inputs(folder, ordered, description.channels, _unused(folder, cases))


def _find_file(url: str, layout: Layout) -> Inputs:
    """The case of a file: the file itself or, if its name has a channel's number, that and its siblings."""
    folder, name = posixpath.split(url)
    case = stem(name, VOLUME_ENDINGS + DETACHED_ENDINGS)
    if case is None:
        known = ", ".join(VOLUME_ENDINGS)
        raise ConfigError(
            f"{files.shown(url)} is no image of a known format ({known}); of DICOM give the series' folder"
        )
    if layout != "folder" and _CHANNEL.fullmatch(case):
        found = _find_in(folder, layout)
        chosen = tuple(case for case in found.cases if url in case.images)
        return Inputs(folder, chosen, found.channels)
    return Inputs(folder, (FoundCase(case, (url,), None),), _describe(folder).channels)


def _describe(folder: str) -> _Description:
    """The `dataset.json` in the folder or, of an image folder, beside it; an empty one if there is none."""
    places = [folder]
    if posixpath.basename(folder).startswith("images"):
        places.append(posixpath.dirname(folder))
    for place in places:
        url = files.join(place, _DESCRIPTION)
        if files.exists(url):
            return read_description(url, _Description)
    return _Description()


def _unused(folder: str, cases: list[FoundCase]) -> tuple[str, ...]:
    used = {posixpath.basename(url.rstrip("/")) for case in cases for url in case.images}
    names = (name for name in files.listing(folder) if not name.startswith("."))
    return tuple(name for name in names if name not in used and name != _DESCRIPTION)


def _check_names(cases: list[FoundCase]) -> None:
    for case in cases:
        check_name(case.images[0])
    ordered = sorted(cases, key=lambda case: case.name)
    for one, other in itertools.pairwise(ordered):
        if one.name == other.name:
            raise ConfigError(f"{one.images[0]} and {other.images[0]} are the same case; remove one")


# --------------------------------------------------------------------------------------------------- channels


def _has_suffixes(found: Mapping[str, str], layout: Layout, description: _Description) -> bool:
    if layout != "auto":
        return layout == "nnunet"
    if description.channel_names is not None:
        return True
    matches = [_CHANNEL.fullmatch(name) for name in found]
    firsts = {match["case"] for match in matches if match and int(match["channel"]) == 0}
    return all(match is not None and match["case"] in firsts for match in matches)


def _grouped(found: Mapping[str, str], description: _Description) -> list[FoundCase]:
    """Cases of one file per channel; files that are missing are named, so that the reader reports them."""
    ending = description.file_ending
    if ending is not None and ending not in VOLUME_ENDINGS:
        known = ", ".join(VOLUME_ENDINGS)
        raise ConfigError(f"{_DESCRIPTION}: file_ending is {ending!r}; {known} can be read")
    channels: dict[str, dict[int, str]] = defaultdict(dict)
    for name, url in found.items():
        if ending is not None and not url.endswith(ending):
            continue
        match = _CHANNEL.fullmatch(name)
        if match is None:
            raise ConfigError(
                f"{files.shown(url)} does not end in its channel's number, as {name}_0000 does; rename it, "
                "or set `layout` to folder"
            )
        channels[match["case"]][int(match["channel"])] = url
    declared = len(description.channels)
    return [
        FoundCase(case, _urls(case, urls, max(declared, 1 + max(urls))), None)
        for case, urls in sorted(channels.items())
    ]


def _urls(case: str, urls: Mapping[int, str], count: int) -> tuple[str, ...]:
    """URLs of all channels; those of missing ones as their siblings let expect."""
    sibling = next(iter(urls.values()))
    folder, name = posixpath.split(sibling)
    known = VOLUME_ENDINGS + DETACHED_ENDINGS
    ending = next(end for end in known if name.endswith(end))
    return tuple(urls.get(index, files.join(folder, f"{case}_{index:04d}{ending}")) for index in range(count))


# ------------------------------------------------------------------------------------------------------ DICOM


def _series(folder: str) -> dict[str, str]:
    """Folders of DICOM files by name: those directly below, or else the folder itself."""
    names = [name for name in files.listing(folder) if not name.startswith(".")]
    below = {name: files.join(folder, name) for name in names}
    found = {name: url for name, url in below.items() if files.is_folder(url) and _is_series(url)}
    if not found and _is_series(folder):
        return {posixpath.basename(folder): folder}
    return found


def _is_series(folder: str) -> bool:
    """Whether a folder has a DICOM file among its first files; a damaged one counts."""
    names = [name for name in files.listing(folder) if stem(name, VOLUME_ENDINGS) is None]
    visible = [files.join(folder, name) for name in names if not name.startswith(".")]
    inside = [url for url in visible if not files.is_folder(url)]
    return any(header is not None for _, header in dicom.headers(inside[:_FILES_TRIED]))
