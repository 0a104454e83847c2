"""Any volume in any storage: read back within half a step, by every reader, in any box, to the same bit."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hssl_dist.config.parts import CacheConfig
from hssl_dist.errors import InputError
from hssl_dist.records import Region
from hssl_dist.store import layout, open_reader
from hssl_dist.store.cropping import nearest_number
from hssl_dist.store.encoding import encode_case
from hssl_dist.store.quantising import FINEST_STEP, quantise, stored_numbers
from hssl_dist.store.writer import write_case
from tests.depth import examples
from tests.reading import dequantise, read_regions
from tests.unit.store import strategies
from tests.unit.store.conftest import CLASSES, make_record

FLOAT16_LIMIT = 65504.0
FINITE = st.floats(-(2.0**100), 2.0**100, width=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that each example finds empty."""
    return tmp_path_factory.mktemp("stores") / "own"


def box_of(values, region, background):
    """A box, index by index along each axis."""
    axes = [np.arange(start, start + size) for start, size in zip(region.start, region.shape, strict=True)]
    inside = [(axis >= 0) & (axis < side) for axis, side in zip(axes, values.shape, strict=True)]
    box = np.full(region.shape, background, values.dtype)
    box[np.ix_(*inside)] = values[np.ix_(*(axis[kept] for axis, kept in zip(axes, inside, strict=True)))]
    return box


def half_steps(image, dtype, scaling):
    """How far off each stored value may be: half of the distance of the numbers around it."""
    if dtype == "int16":
        return np.full(image.shape, scaling.scale_factor / 2)
    return np.maximum(np.abs(image), 2.0**-14) * 2.0**-11


@given(strategies.volumes(largest=5e4), strategies.storages(), st.data())
@examples(40)
def test_what_is_stored_is_read_back_by_every_reader_in_any_box(folder, volume, storage, data):
    shutil.rmtree(folder, ignore_errors=True)
    background = data.draw(st.floats(-10, 10))
    described = make_record("case", volume)
    intensities = tuple(one.model_copy(update={"background": background}) for one in described.intensities)
    described = described.model_copy(update={"intensities": intensities})
    record = write_case(str(folder), described, volume, CLASSES, storage)
    dtype = "int16" if storage.dtype == "auto" else storage.dtype
    expected, scaling = dequantise(*quantise(volume.image, dtype)), quantise(volume.image, dtype)[1]
    assert (np.abs(expected - volume.image) <= half_steps(volume.image, dtype, scaling)).all()
    nearest = nearest_number(background, np.dtype(dtype), scaling)
    padding = dequantise(np.array(nearest), scaling)
    assert abs(padding - background) <= half_steps(np.array(background), dtype, scaling) + 1e-6 or (
        dtype == "int16" and abs(nearest) >= 32767
    )

    boxes = data.draw(st.lists(strategies.regions(len(volume.image)), min_size=1, max_size=4))
    cache = CacheConfig(folder=str(folder / "cache"))
    kinds = {
        "tensorstore": lambda: open_reader(str(folder)),
        "zarr": lambda: open_reader(str(folder), "zarr"),
        "cached": lambda: open_reader(str(folder), cache=cache),
        "from the cache": lambda: open_reader(str(folder), cache=cache),
    }
    for kind, opened in kinds.items():
        reader = opened()
        np.testing.assert_array_equal(reader.image(record), expected, kind)
        for region in boxes:
            wanted = box_of(expected[region.channel], region, padding)
            found = reader.region(record, region)
            assert found.tobytes() == wanted.tobytes(), kind
            numbers = np.full((1, *region.shape), 77, np.int16)
            form = reader.fill_numbers([(record, region)], numbers)
            scale, offset = form.scalings[0]
            np.testing.assert_array_equal(numbers.view(form.dtype)[0] * scale + offset, wanted, kind)
            if volume.label is not None:
                np.testing.assert_array_equal(
                    reader.label_region(record, region), box_of(volume.label, region, 0), kind
                )
        if volume.label is not None:
            np.testing.assert_array_equal(reader.label(record), volume.label, kind)
        same = [Region("toy", "case", box.channel, box.start, (3, 4, 5)) for box in boxes]
        for row, region in zip(read_regions(reader, [(record, box) for box in same]), same, strict=True):
            np.testing.assert_array_equal(row, box_of(expected[region.channel], region, padding), kind)
    assert reader.figures().bytes_fetched == reader.figures().cache_misses == 0


@given(strategies.volumes(), strategies.storages(), st.text(min_size=1, max_size=5))
@examples(40)
def test_objects_depend_on_the_volume_alone_and_tile_it(volume, storage, name):
    if storage.dtype == "float16" and np.abs(volume.image).max() > FLOAT16_LIMIT:
        with pytest.raises(InputError, match="float16 ends at 65504"):
            encode_case(name, volume, CLASSES, storage)
        return
    objects = encode_case(name, volume, CLASSES, storage)

    assert objects == encode_case(name, volume, dict(reversed(CLASSES.items())), storage)
    chunk, shard = layout.chunk_grid(volume.image.shape[1:], storage.chunk, storage.shard)
    for side, part, whole in zip(volume.image.shape[1:], chunk, shard, strict=True):
        assert whole % part == 0
        assert 0 <= -(-side // part) * part - side < -(-side // part)
    counts = [-(-side // whole) for side, whole in zip(volume.image.shape[1:], shard, strict=True)]
    shards = [path for path in objects if path.startswith("0/c/")]
    assert len(shards) == len(volume.image) * int(np.prod(counts))
    assert (f"{layout.LABEL_ARRAY}/zarr.json" in objects) == (volume.label is not None)


@given(st.lists(FINITE, min_size=1, max_size=20))
@examples(200)
def test_int16_is_within_half_of_the_smallest_step_that_reaches_and_exact_again(values):
    image = np.array(values, np.float32).reshape(1, 1, 1, -1)
    stored, scaling = quantise(image, "int16")
    step, limit = scaling.scale_factor, float(np.abs(image).max())

    assert np.frexp(step)[0] == 0.5, "a power of two"
    assert step == FINEST_STEP or limit > 32767 * step / 2
    assert np.abs(dequantise(stored, scaling).astype(np.float64) - image).max() <= step / 2
    again, _ = quantise(dequantise(stored, scaling), "int16")
    np.testing.assert_array_equal(
        dequantise(again, quantise(dequantise(stored, scaling), "int16")[1]), dequantise(stored, scaling)
    )


@given(st.floats(-1e38, 1e38), st.sampled_from(["int16", "float16"]), st.floats(0, FLOAT16_LIMIT))
@examples(200)
def test_padding_is_the_nearest_number_there_is(value, dtype, limit):
    numbers, scaling = stored_numbers(dtype, limit)
    every = np.arange(2**16).astype(np.uint16).view(dtype)
    candidates = every[np.isfinite(every)].astype(np.float64) * scaling.scale_factor

    found = nearest_number(value, numbers, scaling)

    assert found.dtype == numbers
    assert abs(float(found) * scaling.scale_factor - value) <= np.abs(candidates - value).min()
