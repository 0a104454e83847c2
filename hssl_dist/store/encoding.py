"""A volume as the objects of an OME-Zarr group, in memory. With zarr_backend.py the sole importer of zarr."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from hssl_dist.store import layout
from hssl_dist.store.quantising import quantise, stored_dtype
from hssl_dist.store.sharding import ZSTD_LEVEL, box_of, encode_shard, shard_places

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hssl_dist.config.preprocess import StorageConfig
    from hssl_dist.records import Volume

# Of an inner chunk. Crc32c: plain zstd lets flipped bits pass.
CODECS = (ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec())


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
    memory: dict[str, Buffer] = {}
    store = MemoryStore(memory)
    zarr.create_group(store, attributes=layout.image_attributes(case_id, volume.spacing_mm))
    data = _encode_array(store, layout.IMAGE_ARRAY, "czyx", stored, storage, attributes)
    if volume.label is not None:
        zarr.create_group(store, path="labels", attributes=layout.labels_attributes())
        zarr.create_group(
            store, path=layout.LABEL_GROUP, attributes=layout.label_attributes(volume.spacing_mm, classes)
        )
        data |= _encode_array(store, layout.LABEL_ARRAY, "zyx", volume.label, storage, {})
    data |= {path: buffer.to_bytes() for path, buffer in memory.items()}
    return dict(sorted(data.items()))


def _encode_array(
    store: MemoryStore,
    path: str,
    axes: str,
    values: np.ndarray[Any, np.dtype[Any]],
    storage: StorageConfig,
    attributes: dict[str, Any],
) -> dict[str, bytes]:
    """Creates the array in `store`, its metadata alone; returns its shards."""
    *_, depth, height, width = values.shape
    chunk, shard = layout.chunk_grid((depth, height, width), storage.chunk, storage.shard)
    per_channel = (1,) * (values.ndim - 3)
    zarr.create_array(
        store,
        name=path,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(*per_channel, *chunk),
        shards=(*per_channel, *shard),
        compressors=CODECS,
        fill_value=0,
        dimension_names=tuple(axes),
        attributes=attributes,
        config={"write_empty_chunks": True},  # so an absent object always means a lost one
    )
    chunk_shape, shard_shape = (*per_channel, *chunk), (*per_channel, *shard)
    return {
        f"{path}/c/{'/'.join(map(str, place))}": encode_shard(
            values[box_of(place, shard_shape)], chunk_shape, shard_shape
        )
        for place in shard_places(values.shape, shard_shape)
    }
