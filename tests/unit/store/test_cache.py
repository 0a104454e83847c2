"""The cache of decoded volumes: one process and many, damage, kills, full and missing disks."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import random
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hssl_dist import files
from hssl_dist.config.parts import CacheConfig
from hssl_dist.config.preprocess import StorageConfig
from hssl_dist.errors import CorruptError
from hssl_dist.records import Region, Volume
from hssl_dist.store import open_reader
from hssl_dist.store.cache import VolumeCache, cache_folder, free_reserve, volume_key
from hssl_dist.store.writer import write_case
from tests.reading import read_regions
from tests.unit.store import cache_worker
from tests.unit.store.cache_worker import Work, check_regions, notes, volume_of
from tests.unit.store.conftest import make_record, make_volume

SHAPE = (24, 32, 32)
VOLUME_BYTES = 24 * 32 * 32 * 2
FILE_BYTES = VOLUME_BYTES + 512  # and its footer, which is shorter
VOLUMES = 20
ONE_SHARD = StorageConfig(chunk=(8, 8, 8), shard=(32, 32, 32))


def write_volumes(root: str, numbers: range):
    records = []
    for number in numbers:
        like = make_volume(SHAPE, labelled=False)
        volume = Volume(volume_of(number, SHAPE)[None], None, like.spacing_mm, like.modalities, like.geometry)
        records.append(write_case(root, make_record(f"v{number}", volume), volume, {}, ONE_SHARD))
    return records


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """A store of twenty volumes, and its records."""
    root = str(tmp_path_factory.mktemp("volumes"))
    return root, write_volumes(root, range(VOLUMES))


@pytest.fixture
def work(volumes, tmp_path):
    """Reading the twenty volumes through a cache that holds six."""
    root, records = volumes
    texts = tuple(record.model_dump_json() for record in records)
    return Work(root, str(tmp_path / "cache"), 6 * FILE_BYTES, texts, str(tmp_path / "notes"))


def files_in(work: Work, suffix: str) -> list[Path]:
    return sorted(Path(work.folder).glob(f"*.{suffix}"))


@contextmanager
def folder_lock(work: Work):
    """While held, no process takes room or gives a file its final name."""
    with Path(work.folder, "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def bytes_in(work: Work) -> int:
    """What the folder's files take at one moment."""
    if not Path(work.folder).exists():
        return 0
    total = 0
    with folder_lock(work):
        for entry in os.scandir(work.folder):
            with suppress(FileNotFoundError):
                total += entry.stat().st_size
    return total


def wait_for(work: Work, line: str) -> None:
    deadline_s = time.monotonic() + 30
    while line not in notes(work.notes):
        assert time.monotonic() < deadline_s, f"{line!r} was never noted"
        time.sleep(0.005)


def region_of(record, start=(0, 0, 0), shape=(4, 8, 8)):
    return record, Region(record.dataset, record.id, 0, start, shape)


# ------------------------------------------------------------------------------------------------ one process


def test_a_volume_is_fetched_once_and_then_mapped(volumes, tmp_path):
    root, records = volumes
    config = CacheConfig(folder=str(tmp_path / "cache"))
    first = open_reader(root, cache=config)
    check_regions(first, records[:3], seed=1, count=10)
    figures = first.figures()
    assert figures.regions == 40
    assert figures.cache_misses >= 3
    assert figures.requests == 6, "metadata and the one shard of each"
    second = open_reader(root, cache=config)
    check_regions(second, records[:3], seed=2, count=10)
    difference = second.figures()
    assert (difference.cache_hits, difference.cache_misses) == (40, 0)
    assert (difference.requests, difference.bytes_fetched) == (0, 0), "not even metadata"


def test_a_case_that_is_written_anew_is_another_volume(tmp_path, store_case):
    config = CacheConfig(folder=str(tmp_path / "cache"))
    for seed in (1, 2):
        case = store_case(tmp_path / "store", "case", (9, 10, 11), seed=seed)
        image = open_reader(str(tmp_path / "store"), cache=config).image(case.record)
        assert np.abs(image - case.volume.image).max() <= 2.0**-11
    assert len(list((tmp_path / "cache").glob("*.volume"))) == 2


def test_two_stores_share_a_folder(tmp_path, store_case):
    """Equal volumes are one file, other volumes of the same name are not confused."""
    config = CacheConfig(folder=str(tmp_path / "cache"))
    for store, seed in (("one", 1), ("other", 2), ("copy of one", 1)):
        case = store_case(tmp_path / store, "case", (9, 10, 11), seed=seed)
        reader = open_reader(str(tmp_path / store), cache=config)
        assert np.abs(reader.image(case.record) - case.volume.image).max() <= 2.0**-11
        assert reader.figures().cache_hits == (store == "copy of one")
    assert len(list((tmp_path / "cache").glob("*.volume"))) == 2


def test_channels_and_labels_have_keys_of_their_own(store_case, tmp_path):
    record = store_case(tmp_path, "case", (5, 6, 7), channels=2).record
    keys = {volume_key(record, array, c) for array in ("0", "labels/segmentation/0") for c in (0, 1)}
    assert len(keys) == 4


def test_what_was_not_used_longest_makes_room(work):
    cases = work.cases()
    for number in range(6):
        read_regions(work.reader(), [region_of(cases[number])])
        time.sleep(0.01)
    read_regions(work.reader(), [region_of(cases[0])])
    time.sleep(0.01)
    before = set(files_in(work, "volume"))
    assert len(before) == 6
    for number in (10, 11):
        read_regions(work.reader(), [region_of(cases[number])])
        time.sleep(0.01)
    gone = before - set(files_in(work, "volume"))
    keys = {volume_key(cases[number], "0", 0) for number in (1, 2)}
    assert {path.stem for path in gone} == keys, "the first was used again"


def test_a_working_set_larger_than_the_cache_does_not_thrash(work):
    told = []
    reader = work.reader()
    reader._cache._warn = told.append
    check_regions(reader, work.cases(), seed=3, count=100)
    before = reader.figures()
    check_regions(reader, work.cases(), seed=4, count=200)
    share = (reader.figures() - before).cache_hits / 800
    assert share == pytest.approx(6 / VOLUMES, abs=0.06)
    assert len(notes(work.notes)) == 2 * 6, "six volumes were decoded, once each"
    assert told == [
        f"{work.folder} is full of volumes in use (cache.max_bytes {work.max_bytes}, or its disk); "
        "the others are read from the store region by region"
    ]


def test_evicted_volumes_are_let_go(work):
    cases = work.cases()
    old = work.reader()
    read_regions(old, [region_of(case) for case in cases[:6]])
    assert len(old._cache._mapped) == 6
    time.sleep(0.01)
    read_regions(work.reader(), [region_of(case) for case in cases[6:12]])
    read_regions(old, [region_of(cases[12])])
    assert len(old._cache._mapped) <= 1, "an evicted file that is still mapped would keep its space"


def test_an_error_leaves_nothing_behind(store_case, tmp_path):
    case = store_case(tmp_path / "store", "case", (9, 10, 11))
    shard = next(item.path for item in case.record.objects if "/0/c/" in item.path)
    url = f"{tmp_path}/store/toy/{shard}"
    data = files.read(url)
    files.remove(url)
    reader = open_reader(str(tmp_path / "store"), cache=CacheConfig(folder=str(tmp_path / "cache")))
    with pytest.raises(CorruptError, match="is missing"):
        reader.image(case.record)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["lock"]
    files.write(url, data)
    reader.image(case.record)
    assert reader.figures().cache_misses == 2


# ----------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("seed", range(8))
def test_flipped_bits_and_cuts_are_noticed_and_filled_anew(work, seed):
    cases, rng = work.cases()[:1], random.Random(seed)
    check_regions(work.reader(), cases, seed, count=2)
    (path,) = files_in(work, "volume")
    whole = path.read_bytes()
    if seed % 2:
        path.write_bytes(whole[: rng.randrange(len(whole))])
    else:
        position = rng.randrange(len(whole)) if seed else len(whole) - rng.randrange(1, 200)
        broken = bytearray(whole)
        broken[position] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
    told = []
    reader = work.reader()
    reader._cache._warn = told.append
    check_regions(reader, cases, seed, count=2)
    assert len(told) == 1
    assert told[0].startswith(f"{path} is damaged: it")
    assert path.read_bytes() == whole
    assert notes(work.notes) == ["start v0", "end v0"] * 2


def test_a_file_of_another_volume_is_noticed(work):
    cases = work.cases()
    check_regions(work.reader(), cases[:2], seed=1, count=4)
    first, second = files_in(work, "volume")
    second.write_bytes(first.read_bytes())
    check_regions(work.reader(), cases[:2], seed=1, count=4)
    assert len(notes(work.notes)) == 2 * 3


# ------------------------------------------------------------------------------------------------- no room


def test_a_volume_larger_than_the_cache(work):
    told = []
    reader = replace(work, max_bytes=VOLUME_BYTES).reader()
    reader._cache._warn = told.append
    check_regions(reader, work.cases()[:2], seed=1, count=3)
    assert len(told) == 1
    assert "is larger than the cache, cache.max_bytes 49152: it is read from the store" in told[0]
    assert notes(work.notes) == []


def test_a_folder_that_cannot_be(work, tmp_path):
    (tmp_path / "file").write_text("")
    told = []
    reader = replace(work, folder=str(tmp_path / "file" / "cache")).reader()
    reader._cache._warn = told.append
    check_regions(reader, work.cases(), seed=1, count=5)
    assert len(told) == 2, "one says it cannot be read, the other that it cannot be written"
    assert all("(Not a directory): volumes are read from the store" in text for text in told)


def test_no_file_may_become_that_long(work):
    process = context().Process(target=cache_worker.with_file_size_limit, args=(work, VOLUME_BYTES // 2))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert files_in(work, "volume") + files_in(work, "partial") == []


def test_a_reserve_stays_free():
    assert free_reserve(10 << 30) == (10 << 30) // 20
    assert free_reserve(10 << 40) == 1 << 30


def test_where_the_folder_is():
    assert cache_folder(None, {"XDG_CACHE_HOME": "/caches"}) == Path("/caches/hssl")
    assert cache_folder(None, {}) == Path.home() / ".cache" / "hssl"
    assert cache_folder("~/x", {}) == Path.home() / "x"
    with pytest.raises(ValueError, match="depends on where a process runs"):
        CacheConfig(folder="relative/folder")


# -------------------------------------------------------------------------------------------------- processes


def context():
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["tests.unit.store.cache_worker"])
    return server


def join(processes):
    for process in processes:
        process.join(120)
        assert process.exitcode == 0


def test_four_processes_share_a_cache_that_holds_six_of_twenty(work):
    barrier = context().Barrier(4)
    processes = [
        context().Process(target=cache_worker.two_generations, args=(work, n, barrier, 20, 5))
        for n in range(4)
    ]
    for process in processes:
        process.start()
    most = 0
    while any(process.is_alive() for process in processes):
        most = max(most, bytes_in(work))
        time.sleep(0.002)
    join(processes)
    assert 6 * VOLUME_BYTES < most <= work.max_bytes
    decoded = [line for line in notes(work.notes) if line.startswith("end")]
    figures = [line.split() for line in notes(work.notes) if line.startswith("figures")]
    second = {f"end v{number}" for number in range(15, 20)}
    assert len(set(decoded) - second) + len(second) >= 6
    assert all(decoded.count(line) <= 2 for line in set(decoded)), "again only after it was evicted"
    assert len(decoded) <= 6 + 5, "six in the first round, the five wanted in the second"
    for _, generation, hits, regions in figures:
        share = int(hits) / int(regions)
        assert share > 0.9 if generation == "1" else 0.15 < share < 0.45


def test_no_volume_slips_past_a_count(work):
    """A file that is renamed while the folder is listed may be seen under neither of its names."""
    work = replace(work, pause_s=0.3)
    thread = threading.Thread(target=read_regions, args=(work.reader(), [region_of(work.cases()[0])]))
    thread.start()
    wait_for(work, "start v0")
    with folder_lock(work):
        wait_for(work, "end v0")
        time.sleep(0.2)
        assert files_in(work, "volume") == []
    thread.join(30)
    assert len(files_in(work, "volume")) == 1


def test_a_volume_several_processes_want_is_decoded_once(work):
    work = replace(work, pause_s=0.3)
    barrier = context().Barrier(4)
    processes = [context().Process(target=cache_worker.same_volume, args=(work, barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    join(processes)
    assert notes(work.notes) == ["start v0", "end v0"]


def test_kills_at_any_point_leave_nothing_wrong(work):
    work = replace(work, pause_s=0.01)
    rng = random.Random(7)
    interrupted = 0
    for _ in range(12):
        process = context().Process(target=cache_worker.endless, args=(work,))
        begun = len(notes(work.notes))
        process.start()
        while len(notes(work.notes)) == begun and process.is_alive():
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.15))
        assert process.is_alive(), "it found wrong values"
        process.kill()
        process.join()
        interrupted += len(files_in(work, "partial"))
        assert bytes_in(work) <= work.max_bytes
    assert interrupted, "at least one of them was killed while it filled a volume"
    for _ in range(2):
        check_regions(work.reader(), work.cases(), seed=9, count=20)
    check_regions(work.reader(), work.cases()[:6], seed=9, count=30)
    assert files_in(work, "partial") == []
    assert bytes_in(work) <= work.max_bytes


def test_a_cache_of_its_own_folder_is_private(work):
    read_regions(work.reader(), [region_of(work.cases()[0])])
    assert Path(work.folder).stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in Path(work.folder).iterdir())
    assert isinstance(work.reader()._cache, VolumeCache)
