"""Plain folders: `images/<case>.nii.gz`, and `labels/<case>.nii.gz` where there are labels, in any format.

A folder below `images/` is a case, too: one DICOM series. Nothing describes such a dataset, so the config has
to: `modality`, and `classes` if there are labels. A label without an image is a case too, so that it is
reported rather than overlooked.
"""

from __future__ import annotations

from hssl_dist import dicom, files
from hssl_dist.config.preprocess import DatasetConfig
from hssl_dist.datasets.contract import Contents, FoundCase, unused_files, volumes
from hssl_dist.errors import ConfigError, MissingError


def find_folder(config: DatasetConfig, root: str) -> Contents:
    """Every image of the image folder."""
    if config.modality == "auto":
        raise ConfigError(
            f"dataset {config.name!r}: the layout `folder` does not tell the modality; set it to `ct` or `mr`"
        )
    folder = files.join(root, config.images)
    if not files.is_folder(folder):
        raise MissingError(f"dataset {config.name!r}: there is no folder {folder}; set `images`")
    images = _with_series(volumes(folder), folder)
    labels = volumes(files.join(root, config.labels))
    cases = [
        FoundCase(name, (images.get(name, files.join(folder, f"{name}.nii.gz")),), labels.get(name))
        for name in sorted({*images, *labels})
    ]
    unused = unused_files(root, (config.images, config.labels), cases)
    return Contents(tuple(cases), config.classes, (config.modality,), unused)


def _with_series(images: dict[str, str], folder: str) -> dict[str, str]:
    """The images, and the folders beside them as DICOM series."""
    found = dict(images)
    for name in files.listing(folder):
        url = files.join(folder, name)
        if name.startswith(".") or url in images.values() or not files.is_folder(url):
            continue
        if name in found:
            raise ConfigError(f"{url} and {found[name]} are the same case; remove one")
        found[name] = dicom.series_url(url)
    return found
