"""Where things are in a store, how volumes are cut into chunks, and the OME-Zarr metadata. No I/O.

<root>/<dataset>/manifest.jsonl              the committed cases; derived from the records
<root>/<dataset>/records/<case>.jsonl        commit record: the case exists when this does
<root>/<dataset>/quarantine/<case>.jsonl     why a case could not be stored
<root>/<dataset>/<case>.zarr                 OME-Zarr 0.5 image, axes c z y x
    0                                        the volume, quantised
    labels/segmentation/0                    its label, axes z y x, if annotated
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hssl_dist import files
from hssl_dist.errors import StoreError

if TYPE_CHECKING:
    from hssl_dist.records import Shape, Triple

ENCODING_VERSION = 1
"""Raised whenever the same prepared volume would give other objects; part of every case's key."""

IMAGE_ARRAY = "0"
LABEL_GROUP = "labels/segmentation"
LABEL_ARRAY = f"{LABEL_GROUP}/0"
METADATA = "zarr.json"

IMAGE_ITEMSIZE = 2
"""Bytes of a stored voxel, int16 or float16; a label's is one byte."""

_OME_VERSION = "0.5"


def dataset_url(root: str, dataset: str) -> str:
    """Folder of a dataset."""
    return files.join(root, check_name(dataset))


def manifest_url(root: str, dataset: str) -> str:
    """The dataset's manifest."""
    return files.join(dataset_url(root, dataset), "manifest.jsonl")


def records_url(root: str, dataset: str) -> str:
    """Folder of the commit records."""
    return files.join(dataset_url(root, dataset), "records")


def record_url(root: str, dataset: str, case_id: str) -> str:
    """Commit record of a case."""
    return files.join(records_url(root, dataset), f"{check_name(case_id)}.jsonl")


def quarantine_url(root: str, dataset: str) -> str:
    """Folder of the quarantine records."""
    return files.join(dataset_url(root, dataset), "quarantine")


def case_folder(case_id: str) -> str:
    """Path of a case's OME-Zarr group, relative to the dataset's folder."""
    return f"{check_name(case_id)}.zarr"


def check_name(name: str) -> str:
    """The name of a dataset or case, if it can name an object below the store; StoreError otherwise."""
    if not name or name.startswith(".") or any(mark in name for mark in "/\\\0\n"):
        raise StoreError(
            f"the name {name!r} cannot name an object: it must not be empty, start with a dot or hold / or \\"
        )
    return name


# --------------------------------------------------------------------------------------------------- chunks


def chunk_grid(shape: Shape, chunk: Shape, shard: Shape) -> tuple[Shape, Shape]:
    """Inner chunk and shard for a volume: near the wanted sizes, and fitted to the volume.

    A side is cut into equal chunks of about the wanted size (up to half as large again), so that padding
    stays below one voxel per chunk, however thin the volume. A shard holds as many whole chunks as fit its
    wanted size, and the shards of a side hold equally many.
    """
    sides = [_cut(side, near, limit) for side, near, limit in zip(shape, chunk, shard, strict=True)]
    z, y, x = sides
    return (z[0], y[0], x[0]), (z[1], y[1], x[1])


def _cut(side: int, chunk: int, shard: int) -> tuple[int, int]:
    fitted = _divide_up(side, max(1, round(side / chunk)))
    chunks = _divide_up(side, fitted)
    shards = _divide_up(chunks, max(1, shard // fitted))
    return fitted, fitted * _divide_up(chunks, shards)


def _divide_up(value: int, by: int) -> int:
    return -(-value // by)


# ------------------------------------------------------------------------------------------------- metadata


def image_attributes(case_id: str, spacing_mm: Triple) -> dict[str, Any]:
    """Attributes of the image's group."""
    axes = [{"name": "c", "type": "channel"}, *_space_axes()]
    return {"ome": {"version": _OME_VERSION, "multiscales": [_multiscale(case_id, axes, (1.0, *spacing_mm))]}}


def labels_attributes() -> dict[str, Any]:
    """Attributes of the group that lists the labels."""
    return {"ome": {"version": _OME_VERSION, "labels": ["segmentation"]}}


def label_attributes(spacing_mm: Triple, classes: Mapping[int, str]) -> dict[str, Any]:
    """Attributes of the label's group."""
    properties = [{"label-value": value, "name": name} for value, name in sorted(classes.items())]
    colors = [{"label-value": value, "rgba": _colour(value)} for value in sorted(classes)]
    return {
        "ome": {
            "version": _OME_VERSION,
            "multiscales": [_multiscale("segmentation", _space_axes(), spacing_mm)],
            "image-label": {"source": {"image": "../../"}, "colors": colors, "properties": properties},
        }
    }


def _colour(value: int) -> list[int]:
    """RGBA of a label value; hues a golden section apart differ as much as so many hues can."""
    red, green, blue = colorsys.hsv_to_rgb(value * 0.618034 % 1.0, 0.75, 1.0)
    return [round(255 * red), round(255 * green), round(255 * blue), 255]


def _space_axes() -> list[dict[str, str]]:
    return [{"name": name, "type": "space", "unit": "millimeter"} for name in "zyx"]


def _multiscale(name: str, axes: list[dict[str, str]], scale: tuple[float, ...]) -> dict[str, Any]:
    level = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": list(scale)}]}
    return {"name": name, "axes": axes, "datasets": [level]}
