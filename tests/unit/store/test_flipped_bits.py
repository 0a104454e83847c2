"""A thousand flipped bits in a store, one at a time: an error that names the object, or nothing is changed.

Every object is hit: shards, indices, `zarr.json` of arrays and groups, the manifest, commit records and the
quarantine. `HSSL_TEST_DEPTH` (tests/depth.py) multiplies them.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hssl_dist import files
from hssl_dist.errors import CorruptError
from hssl_dist.records import Quarantined
from hssl_dist.store import (
    open_reader,
    read_quarantine,
    read_records,
    read_whole_manifest,
    verify,
    write_manifest,
    write_quarantined,
)
from tests.depth import deepened
from tests.unit.store.conftest import HEADER

FLIPS = deepened(1000)
UNREAD = {
    "plain.zarr/zarr.json",
    "two.zarr/zarr.json",
    "two.zarr/labels/zarr.json",
    "two.zarr/labels/segmentation/zarr.json",
}
"""What only viewers look at; `verify` compares it, too."""


@pytest.fixture
def small_store(tmp_path, store_case):
    """A labelled case of two channels and several shards, one without a label, and one that failed."""
    root = tmp_path / "store"
    cases = [
        store_case(root, "two", (20, 9, 17), channels=2, seed=1).record,
        store_case(root, "plain", (5, 8, 9), labelled=False, seed=2).record,
    ]
    write_manifest(str(root), HEADER, cases)
    failed = Quarantined(id="bad", patient="p", key="k", reason="it is cut off", sources=("bad.nii",))
    write_quarantined(str(root), "toy", failed)
    return root


def name_of(path: Path, root: Path) -> str:
    """An object's path as its case's record has it."""
    return str(path.relative_to(root / "toy"))


def contents(root: Path, kind: str, ids: tuple[str, ...]) -> list[object]:
    """All that is read of the store by a reader of that kind, voxels of these cases."""
    manifest = read_whole_manifest(str(root), "toy")
    found: list[object] = [manifest, read_records(str(root), "toy", ["two", "plain"])]
    found.append(read_quarantine(str(root), "toy"))
    reader = open_reader(str(root), kind)
    for record in manifest.cases:
        if record.id in ids:
            found.append(reader.image(record).tobytes())
            found.append(reader.label(record).tobytes() if record.labelled else None)
    return found


def damage(root: Path, kind: str, ids: tuple[str, ...], expected: list[object]) -> CorruptError | None:
    """The error of reading; None if what is read is what was written."""
    try:
        found = contents(root, kind, ids)
    except CorruptError as error:
        return error
    assert found == expected, "silent damage"
    return None


def test_every_flipped_bit_is_an_error_that_names_the_object_or_changes_nothing(small_store):
    paths = [Path(url) for url in files.walk(str(small_store))]
    assert len(paths) == 24
    pristine = {
        (kind, ids): contents(small_store, kind, ids)
        for kind in ("tensorstore", "zarr")
        for ids in (("two",), ("plain",), ())
    }
    listed = {item.path for case in pristine["zarr", ()][0].cases for item in case.objects}
    outcomes: Counter[str] = Counter()
    harmless: set[str] = set()
    for number in range(FLIPS):
        rng = np.random.default_rng([5, number])
        path = paths[number % len(paths)]
        name = name_of(path, small_store)
        data = path.read_bytes()
        broken = bytearray(data)
        broken[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)

        ids = (name.partition(".zarr")[0],) if ".zarr/" in name else ()
        kind = "zarr" if rng.random() < 0.1 else "tensorstore"
        error = damage(small_store, kind, ids, pristine[kind, ids])
        if error is None:
            harmless.add(name)
        else:
            assert str(path) in str(error)
        if name in listed:
            with pytest.raises(CorruptError) as caught:
                verify(str(small_store), "toy")
            assert str(caught.value).startswith(f"{path} does not have the recorded SHA-256")
        outcomes["detected" if error else "harmless"] += 1
        path.write_bytes(data)

    unread = sum(name_of(paths[number % len(paths)], small_store) in UNREAD for number in range(FLIPS))
    assert harmless == UNREAD
    assert outcomes == {"detected": FLIPS - unread, "harmless": unread}
    assert outcomes.total() == FLIPS
    assert contents(small_store, "zarr", ("two", "plain")) == contents(
        small_store, "tensorstore", ("two", "plain")
    )
