"""BIDS: `sub-*/[ses-*/]anat/*_<suffix>.nii.gz`, masks under `derivatives/<folder>` with the same folders.

Each image is a case of one channel, and its subject is the patient. A mask whose name holds a contrast
(`sub-1_space-T1w_desc-lesion_mask`, `sub-1_FLAIR_mask`) belongs to that contrast; any other belongs to every
image of its subject and session, and whether it lies on their grid is checked when they are read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from hssl_dist import files
from hssl_dist.config.preprocess import DatasetConfig
from hssl_dist.datasets.contract import Contents, FoundCase, listed, stem
from hssl_dist.errors import ConfigError

_ANAT = r"(?P<session>sub-[^/]+(?:/ses-[^/]+)?)/anat/(?P<file>[^/]+)"
_IMAGE = re.compile(_ANAT)
_MASK = re.compile(r"derivatives/(?P<folder>[^/]+)/" + _ANAT)
_NOT_IMAGES = ("mask", "dseg", "probseg", "defacemask")


@dataclass(frozen=True, slots=True)
class _File:
    """A NIfTI file of `anat`: where it lies (`sub-1/ses-2`), its name's parts, its URL."""

    session: str
    name: str
    url: str

    @property
    def entities(self) -> list[str]:
        return self.name.split("_")

    @property
    def suffix(self) -> str:
        return self.entities[-1]


def find_bids(config: DatasetConfig, root: str) -> Contents:
    """Every anatomical image below `root`, and the masks of one folder of `derivatives`."""
    images, masks = _scan(root)
    chosen = _masks_by_session(config, masks, root)
    contrasts = {image.suffix for image in images}
    cases = [
        FoundCase(
            name=image.name,
            images=(image.url,),
            label=_mask_of(image, chosen.get(image.session, []), contrasts),
            patient=image.session.split("/")[0],
        )
        for image in images
    ]
    used = {case.label for case in cases}
    unused = [mask.url for found in chosen.values() for mask in found if mask.url not in used]
    return Contents(
        cases=tuple(cases),
        classes=config.classes,
        channels=(_modality(config, contrasts),),
        unused=tuple(files.relative(url, root) for url in sorted(unused)),
    )


def _scan(root: str) -> tuple[list[_File], dict[str, list[_File]]]:
    """Images, and masks by their folder of `derivatives`."""
    images: list[_File] = []
    masks: dict[str, list[_File]] = defaultdict(list)
    for url in files.walk(root):
        path = files.relative(url, root)
        match = _IMAGE.fullmatch(path) or _MASK.fullmatch(path)
        name = stem(match["file"]) if match else None
        if match is None or name is None:
            continue
        file = _File(match["session"], name, url)
        if match.re is _IMAGE and file.suffix not in _NOT_IMAGES:
            images.append(file)
        elif match.re is _MASK and file.suffix == "mask":
            masks[match["folder"]].append(file)
    return images, masks


def _masks_by_session(
    config: DatasetConfig, masks: Mapping[str, list[_File]], root: str
) -> dict[str, list[_File]]:
    """The masks of the configured folder of `derivatives`, or of the only one."""
    folder = config.derivatives
    if folder is None and len(masks) > 1:
        raise ConfigError(
            f"dataset {config.name!r} has masks in derivatives/ of {listed(sorted(masks))}; "
            "choose one with `derivatives`"
        )
    if folder is not None and folder not in masks:
        raise ConfigError(f"dataset {config.name!r}: no masks in {files.join(root, 'derivatives', folder)}")
    chosen: dict[str, list[_File]] = defaultdict(list)
    for mask in masks.get(folder or next(iter(masks), ""), []):
        chosen[mask.session].append(mask)
    return chosen


def _mask_of(image: _File, masks: list[_File], contrasts: set[str]) -> str | None:
    """The URL of the mask that names the image's contrast, else of the one that names none."""
    named: list[_File] = []
    general: list[_File] = []
    for mask in masks:
        contrast = {entity.removeprefix("space-") for entity in mask.entities} & contrasts
        if image.suffix in contrast:
            named.append(mask)
        elif not contrast:
            general.append(mask)
    matching = named or general
    if len(matching) > 1:
        raise ConfigError(
            f"{image.name} has {len(matching)} masks ({listed(mask.name for mask in matching)}); keep one"
        )
    return matching[0].url if matching else None


def _modality(config: DatasetConfig, contrasts: set[str]) -> str:
    kinds = {"CT" if suffix == "CT" else "MR" for suffix in contrasts}
    if config.modality == "auto" and len(kinds) > 1:
        raise ConfigError(
            f"dataset {config.name!r} mixes CT and MR ({listed(sorted(contrasts))}); set `modality`, "
            "or make two datasets of it"
        )
    return "CT" if kinds == {"CT"} else "MR"
