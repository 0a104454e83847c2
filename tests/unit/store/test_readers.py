"""The contract of readers, which every implementation passes on every storage it can read."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import hssl_dist.store
from hssl_dist import files
from hssl_dist.config.parts import CacheConfig
from hssl_dist.config.preprocess import StorageConfig
from hssl_dist.errors import CorruptError, StoreError
from hssl_dist.records import Region
from hssl_dist.store import Reader
from hssl_dist.store.quantising import quantise
from hssl_dist.store.tensorstore_backend import kvstore
from tests.reading import dequantise, read_regions
from tests.unit.store.conftest import new_root

KINDS = ("tensorstore", "zarr", "cached")
CASES = ("thin", "shards", "two channels", "unlabelled")

START_AND_SHAPE = [
    ((0, 0, 0), (2, 9, 15)),
    ((1, 3, 2), (1, 5, 13)),
    ((-3, -2, -1), (8, 12, 16)),
    ((-5, 5, 5), (60, 60, 60)),
    ((100, 0, 0), (4, 4, 4)),
    ((-4, -4, -4), (4, 4, 4)),
]

_corner = Region("toy", "case", 0, (-2, 0, 0), (4, 4, 4))


def stored_image(volume):
    """What a perfect store returns: the volume, quantised."""
    return dequantise(*quantise(volume.image, "int16"))


def padded_box(values, region, background):
    """A region by plain loops' logic: pad far enough, then cut."""
    margin = 120
    wide = np.pad(values, margin, constant_values=background)
    low = [start + margin for start in region.start]
    return wide[tuple(slice(a, a + size) for a, size in zip(low, region.shape, strict=True))]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def open_reader(tmp_path):
    """Opens a reader of a kind; all `cached` ones of a test share a folder."""

    def opened(root: str, kind: str) -> Reader:
        if kind == "cached":
            return hssl_dist.store.open_reader(root, cache=CacheConfig(folder=str(tmp_path / "cache")))
        return hssl_dist.store.open_reader(root, kind)

    return opened


@pytest.mark.parametrize("case_id", CASES)
def test_whole_volumes_bit_for_bit(open_reader, kind, kept_store, case_id):
    root, cases = kept_store
    case = cases[case_id]
    image = open_reader(root, kind).image(case.record)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, stored_image(case.volume))


@pytest.mark.parametrize("case_id", ["thin", "shards", "two channels"])
def test_whole_labels(open_reader, kind, kept_store, case_id):
    root, cases = kept_store
    label = open_reader(root, kind).label(cases[case_id].record)
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, cases[case_id].volume.label)


def test_regions_are_padded_with_the_background(open_reader, kind, kept_store):
    root, cases = kept_store
    reader = open_reader(root, kind)
    places = itertools.product(START_AND_SHAPE, (("thin", 0), ("shards", 0), ("two channels", 1)))
    for (start, shape), (case_id, channel) in places:
        record, volume = cases[case_id].record, cases[case_id].volume
        region = Region("toy", case_id, channel, start, shape)
        expected = padded_box(stored_image(volume)[channel], region, -5.0 - channel)
        np.testing.assert_array_equal(reader.region(record, region), expected)
        np.testing.assert_array_equal(
            reader.label_region(record, region), padded_box(volume.label, region, 0)
        )


def test_many_regions_at_once_equal_one_by_one(open_reader, kind, kept_store):
    root, cases = kept_store
    reader = open_reader(root, kind)
    rng = np.random.default_rng(5)
    pairs = []
    for case_id in rng.choice(CASES, 20):
        start = tuple(int(value) for value in rng.integers(-6, 20, 3))
        pairs.append((cases[case_id].record, Region("toy", str(case_id), 0, start, (6, 9, 11))))
    found = read_regions(reader, pairs)
    assert len(found) == 20
    for values, (record, region) in zip(found, pairs, strict=True):
        np.testing.assert_array_equal(values, reader.region(record, region))


def test_numbers_are_those_of_the_values(open_reader, kind, kept_store):
    root, cases = kept_store
    reader = open_reader(root, kind)
    starts = [start for start, _ in START_AND_SHAPE]
    places = itertools.product(starts, (("thin", 0), ("shards", 0), ("two channels", 1), ("unlabelled", 0)))
    pairs = [
        (cases[case_id].record, Region("toy", case_id, channel, start, (8, 12, 16)))
        for start, (case_id, channel) in places
    ]
    numbers = np.full((len(pairs), 8, 12, 16), 12345, np.int16)
    form = reader.fill_numbers(pairs, numbers)
    assert form.dtype == np.int16
    assert form.scalings.dtype == np.float32
    scales, offsets = form.scalings.T[:, :, None, None, None]
    np.testing.assert_array_equal(numbers * scales + offsets, read_regions(reader, pairs))


def test_padding_is_the_stored_number_nearest_to_the_background(open_reader, kind, tmp_path, store_case):
    case = store_case(tmp_path, "case", (6, 20, 20))
    intensity = case.record.intensities[0].model_copy(update={"background": -1.23456})
    record = case.record.model_copy(update={"intensities": (intensity,)})
    reader = open_reader(str(tmp_path), kind)
    step = reader.fill_numbers([(record, _corner)], np.empty((1, 4, 4, 4), np.int16)).scalings[0, 0]
    values = reader.region(record, _corner)
    np.testing.assert_array_equal(values[:2], np.float32(round(-1.23456 / step) * step))
    assert abs(values[0, 0, 0] + 1.23456) <= step / 2


def test_volumes_of_two_types_are_not_mixed_in_a_batch(open_reader, kind, tmp_path, store_case):
    cases = [
        store_case(tmp_path, name, (6, 20, 20), storage=StorageConfig(dtype=name))
        for name in ("int16", "float16")
    ]
    reader = open_reader(str(tmp_path), kind)
    pairs = [(case.record, Region("toy", case.record.id, 0, (0, 0, 0), (4, 4, 4))) for case in cases]
    out = np.empty((2, 4, 4, 4), np.int16)
    with pytest.raises(StoreError) as caught:
        reader.fill_numbers(pairs, out)
    assert str(caught.value) == (
        f"{tmp_path} has volumes stored as float16 and int16, which one batch cannot hold; preprocess its "
        "datasets with one storage.dtype"
    )
    form = reader.fill_numbers(pairs[1:], out[1:])
    assert form.dtype == np.float16
    np.testing.assert_array_equal(out[1:].view(np.float16), read_regions(reader, pairs[1:]))


def test_a_label_that_is_not_there(open_reader, kind, kept_store):
    root, cases = kept_store
    reader, record = open_reader(root, kind), cases["unlabelled"].record
    said = "the record of case 'unlabelled' of 'toy' lists no object unlabelled.zarr/labels/segmentation/0"
    with pytest.raises(StoreError, match=said):
        reader.label(record)
    with pytest.raises(StoreError, match=said):
        reader.label_region(record, Region("toy", "unlabelled", 0, (0, 0, 0), (2, 2, 2)))


def objects_of(case, prefix):
    return [item.path for item in case.record.objects if item.path.startswith(prefix)]


@pytest.mark.parametrize("array", ["0", "labels/segmentation/0"])
def test_every_lost_object_is_an_error_that_names_it(open_reader, kind, own_store, storage, array):
    root, cases = own_store
    case = cases["shards"]
    lost = objects_of(case, f"shards.zarr/{array}/")
    assert len(lost) == 1 + 3 * 3 * 2, "the metadata and every shard"
    for path in lost if storage == "local" else lost[::6]:
        url = f"{root}/toy/{path}"
        data = files.read(url)
        files.remove(url)
        reader = open_reader(root, kind)
        with pytest.raises(CorruptError, match="is missing; remove its case's commit record") as caught:
            reader.image(case.record) if array == "0" else reader.label(case.record)
        assert str(caught.value).startswith(f"{url} is missing")
        files.write(url, data)


def test_every_flipped_bit_is_an_error_that_names_the_object(open_reader, kind, own_store, storage):
    root, cases = own_store
    case = cases["thin"]
    rng = np.random.default_rng(6)
    region = Region("toy", "thin", 0, (0, 0, 0), (2, 19, 33))
    for path in objects_of(case, "thin.zarr/0/"):
        url = f"{root}/toy/{path}"
        data = files.read(url)
        for position in rng.integers(0, len(data), 3 if storage == "s3" else 15):
            broken = bytearray(data)
            broken[position] ^= 1 << rng.integers(0, 8)
            files.write(url, bytes(broken))
            reader = open_reader(root, kind)
            with pytest.raises(CorruptError) as caught:
                read_regions(reader, [(case.record, region)])
            assert str(caught.value).startswith(f"{url} does not have the recorded SHA-256")
        files.write(url, data)
    open_reader(root, kind).region(case.record, region)


def test_a_cut_object(open_reader, kind, own_store):
    root, cases = own_store
    url = f"{root}/toy/thin.zarr/0/c/0/0/0/0"
    data = files.read(url)
    files.write(url, data[: len(data) // 2])
    with pytest.raises(CorruptError) as caught:
        open_reader(root, kind).image(cases["thin"].record)
    assert str(caught.value).startswith(
        f"{url} has {len(data) // 2} bytes, its record says {len(data)}; remove its case's commit record"
    )


def test_a_float16_store_reads_the_same_in_both(open_reader, tmp_path, store_case):
    case = store_case(tmp_path, "half", (6, 20, 20), storage=StorageConfig(dtype="float16"))
    expected = case.volume.image.astype(np.float16).astype(np.float32)
    for kind in KINDS:
        np.testing.assert_array_equal(open_reader(str(tmp_path), kind).image(case.record), expected)


def test_where_tensorstore_finds_a_folder():
    assert kvstore("/data/store/x/", {}) == {"driver": "file", "path": "/data/store/x/"}
    plain = {"driver": "s3", "bucket": "bucket", "path": "prefix/x/"}
    assert kvstore("s3://bucket/prefix/x/", {}) == plain
    assert kvstore("s3://bucket/prefix/x/", {"AWS_REGION": "eu-west-1"}) == {
        **plain,
        "aws_region": "eu-west-1",
    }
    assert kvstore("s3://bucket/prefix/x/", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000"}) == {
        **plain,
        "endpoint": "http://127.0.0.1:9000",
        "aws_region": "us-east-1",
    }
    assert kvstore("s3://bucket/prefix/x/", {"AWS_ACCESS_KEY_ID": "me"}) == {
        **plain,
        "aws_credentials": {"type": "environment"},
    }
    assert kvstore("memory://bucket/x", {}) is None


@pytest.mark.s3
@pytest.mark.parametrize("kind", KINDS)
def test_requests_and_bytes_are_what_the_server_saw(open_reader, kind, s3_readers, store_case):
    root = new_root("s3")
    bucket = root.removeprefix("s3://").partition("/")[0]
    storage = StorageConfig(chunk=(8, 8, 8), shard=(64, 64, 64))  # many ranges that lie near each other
    case = store_case(root, "case", (64, 56, 57), storage=storage)
    open_reader(root, "tensorstore").image(case.record)  # clients exist, places of buckets are known
    before, reader = s3_readers.counts(bucket), open_reader(root, kind)
    pairs = [(case.record, Region("toy", "case", 0, (z, 4, 4), (12, 20, 20))) for z in (0, 15)]
    for _ in range(2):
        read_regions(reader, pairs)
    seen = s3_readers.counts(bucket) - before
    figures = reader.figures()
    assert figures.requests == seen.requests["GET"]
    assert figures.bytes_fetched == seen.bytes_sent
    assert figures.regions == 4
    assert figures.bytes_used == 4 * 12 * 20 * 20 * 2
    if kind == "cached":
        assert (figures.cache_hits, figures.cache_misses) == (2, 2)
        again = open_reader(root, kind)
        read_regions(again, pairs)
        assert again.figures().requests == again.figures().bytes_fetched == 0
        assert s3_readers.counts(bucket) - before == seen
