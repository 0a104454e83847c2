"""A case's objects are those zarr-python writes, byte for byte."""

from __future__ import annotations

from dataclasses import replace

import pytest
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from hssl_dist.config.preprocess import StorageConfig
from hssl_dist.records import Scaling
from hssl_dist.store import layout
from hssl_dist.store.encoding import encode_case
from tests.unit.store.conftest import make_volume

CLASSES = {1: "anterior", 2: "posteriör"}


def by_zarr_python(case_id, volume, storage):
    """The objects of a volume that is in the storage's own numbers."""
    memory = {}
    store = MemoryStore(memory)
    scaling = {"scale_factor": volume.scaling.scale_factor, "add_offset": volume.scaling.add_offset}
    zarr.create_group(store, attributes=layout.image_attributes(case_id, volume.spacing_mm))
    arrays = [("0", "czyx", volume.image, scaling)]
    if volume.label is not None:
        label = layout.label_attributes(volume.spacing_mm, CLASSES)
        zarr.create_group(store, path="labels", attributes=layout.labels_attributes())
        zarr.create_group(store, path="labels/segmentation", attributes=label)
        arrays.append(("labels/segmentation/0", "zyx", volume.label, {}))
    for path, axes, values, attributes in arrays:
        ones = (1,) * (values.ndim - 3)
        chunk, shard = layout.chunk_grid(values.shape[-3:], storage.chunk, storage.shard)
        array = zarr.create_array(
            store, name=path, shape=values.shape, dtype=values.dtype,
            chunks=(*ones, *chunk), shards=(*ones, *shard),
            compressors=(ZstdCodec(level=3), Crc32cCodec()), fill_value=0,
            dimension_names=tuple(axes), attributes=attributes, config={"write_empty_chunks": True},
        )  # fmt: skip
        array[...] = values
    return {path: buffer.to_bytes() for path, buffer in memory.items()}


@pytest.mark.parametrize("dtype", ["int16", "float16"])
@pytest.mark.parametrize(
    ("shape", "channels", "labelled"),
    [((5, 6, 7), 1, True), ((33, 40, 21), 2, True), ((2, 17, 30), 1, False)],
)
def test_objects_are_those_of_zarr_python(dtype, shape, channels, labelled):
    storage = StorageConfig(chunk=(8, 8, 8), shard=(16, 16, 16), dtype=dtype)
    volume = make_volume(shape, channels, labelled)
    numbers = (volume.image * 1000).astype(dtype)
    volume = replace(volume, image=numbers, scaling=Scaling(2**-9) if dtype == "int16" else Scaling())
    assert encode_case("cäse", volume, CLASSES, storage) == by_zarr_python("cäse", volume, storage)
