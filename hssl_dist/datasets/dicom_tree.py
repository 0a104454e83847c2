"""DICOM trees as archives export them: `<patient>/<study>/<series>/*`, every series a case without a label.

A series is what one folder holds of one SeriesInstanceUID, so a folder may hold several. The patient is the
first folder below the root. A case is named after the patient and a hash of the series and its folder:
neither a tag's text nor the folders in between are part of its id.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable

from hssl_dist import dicom, files
from hssl_dist.config.preprocess import DatasetConfig
from hssl_dist.datasets.contract import Contents, FoundCase, listed
from hssl_dist.errors import ConfigError, InputError

_NOT_SCANS = ("SEG", "RTDOSE")
"""Modalities of objects that have voxels but were computed from a scan."""


def find_dicom(config: DatasetConfig, root: str) -> Contents:
    """Every series of images below `root`. Files that are no DICOM, and objects without voxels, are no cases.

    A folder with a damaged file and no image is a case as well, so that it is reported.
    """
    modalities: dict[tuple[str, str | None], str] = {}
    damaged: set[str] = set()
    for url, header in dicom.headers(files.walk(root)):
        folder = posixpath.dirname(url)
        if isinstance(header, InputError):
            damaged.add(folder)
        elif header is not None and header.pixels and header.values.get("modality") not in _NOT_SCANS:
            modalities[folder, header.series] = header.values.get("modality", "")
    damaged -= {folder for folder, _ in modalities}
    cases = [
        _found(root, folder, series) for folder, series in [*modalities, *((one, None) for one in damaged)]
    ]
    return Contents(tuple(cases), config.classes, (_modality(config, modalities.values()),))


def _found(root: str, folder: str, series: str | None) -> FoundCase:
    path = files.relative(folder, root)
    patient = None if path == "." else path.split("/")[0]
    digest = hashlib.sha256(f"{path}\n{series}".encode()).hexdigest()[:12]
    return FoundCase(
        name=f"{patient or 'series'}_{digest}",
        images=(dicom.series_url(folder, series),),
        label=None,
        patient=patient,
    )


def _modality(config: DatasetConfig, modalities: Iterable[str]) -> str:
    kinds = {modality or "unknown" for modality in modalities}
    if config.modality == "auto" and len(kinds) > 1:
        raise ConfigError(
            f"dataset {config.name!r} mixes the modalities {listed(sorted(kinds))}; set `modality`, "
            "or make several datasets of it"
        )
    return next(iter(kinds), "MR")
