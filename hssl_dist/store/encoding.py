"""A volume as the objects of an OME-Zarr group, in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hssl_dist.store import layout
from hssl_dist.store.metadata import array_document, group_document
from hssl_dist.store.quantising import quantise, stored_dtype
from hssl_dist.store.sharding import box_of, encode_shard, shard_places

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hssl_dist.config.preprocess import StorageConfig
    from hssl_dist.records import Volume


def encode_case(
    case_id: str, volume: Volume, classes: Mapping[int, str], storage: StorageConfig
) -> dict[str, bytes]:
    """The objects of a case by path below its group; equal input gives equal bytes.

    A float32 image is quantised first; one in the storage's own numbers is stored as it is. Peak memory
    beyond the volume: such a copy, the compressed objects and the shard being written.
    """
    stored, scaling = volume.image, volume.scaling
    if stored.dtype == np.float32:
        stored, scaling = quantise(scaling.values(stored), stored_dtype(storage))
    attributes = {"scale_factor": scaling.scale_factor, "add_offset": scaling.add_offset}
    data = {layout.METADATA: group_document(layout.image_attributes(case_id, volume.spacing_mm))}
    data |= _encode_array(layout.IMAGE_ARRAY, "czyx", stored, storage, attributes)
    if volume.label is not None:
        label = layout.label_attributes(volume.spacing_mm, classes)
        data[f"labels/{layout.METADATA}"] = group_document(layout.labels_attributes())
        data[f"{layout.LABEL_GROUP}/{layout.METADATA}"] = group_document(label)
        data |= _encode_array(layout.LABEL_ARRAY, "zyx", volume.label, storage, {})
    return dict(sorted(data.items()))


def _encode_array(
    path: str,
    axes: str,
    values: np.ndarray[Any, np.dtype[Any]],
    storage: StorageConfig,
    attributes: dict[str, Any],
) -> dict[str, bytes]:
    """The objects of an array: all its shards, so an absent one always means a lost one, and its metadata."""
    *_, depth, height, width = values.shape
    chunk, shard = layout.chunk_grid((depth, height, width), storage.chunk, storage.shard)
    per_channel = (1,) * (values.ndim - 3)
    chunk_shape, shard_shape = (*per_channel, *chunk), (*per_channel, *shard)
    document = array_document(values.shape, values.dtype, chunk_shape, shard_shape, axes, attributes)
    shards = {
        f"{path}/c/{'/'.join(map(str, place))}": encode_shard(
            values[box_of(place, shard_shape)], chunk_shape, shard_shape
        )
        for place in shard_places(values.shape, shard_shape)
    }
    return {f"{path}/{layout.METADATA}": document, **shards}
