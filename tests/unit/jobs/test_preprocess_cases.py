"""A worker's batch: results in order, refusals between them, and an error once nothing is being written."""

from __future__ import annotations

import numpy as np
import pytest

from hssl_dist import files
from hssl_dist.config.preprocess import StorageConfig
from hssl_dist.errors import StoreError
from hssl_dist.imaging import ChannelRecipe, Recipe, write_nifti
from hssl_dist.jobs.preprocess_cases import Assignment, Refused, store_cases
from hssl_dist.records import Case
from hssl_dist.store import read_records

RECIPE = Recipe(spacing_mm=(1, 1, 1), channels=(ChannelRecipe(rule="mr"),), classes={}, storage={})


def assignment(folder, name, seed):
    """A case of noise, or for seed None one whose file is broken."""
    path = folder / f"{name}.nii.gz"
    if seed is None:
        path.write_bytes(b"broken")
    else:
        write_nifti(path, np.random.default_rng(seed).integers(0, 900, (9, 10, 11), np.int16), np.eye(4))
    return Assignment(Case("d", name, name, (str(path),), None, ("mr",)), "t", "g", (), (), "0" * 64)


def store(folder, assignments):
    return store_cases(assignments, str(folder / "store"), RECIPE, StorageConfig(), 1 << 20)


def test_results_come_in_the_order_of_the_cases_and_are_committed(tmp_path):
    names = [f"case{index}" for index in range(6)]
    work = [assignment(tmp_path, name, None if name == "case2" else seed) for seed, name in enumerate(names)]
    results = store(tmp_path, work)
    assert [getattr(result, "id", None) for result in results] == [*names[:2], None, *names[3:]]
    assert results[2] == Refused("case2", "case2.nii.gz: not a NIfTI file; convert it to .nii.gz")
    committed = read_records(str(tmp_path / "store"), "d", names)
    assert list(committed.values()) == [result for result in results if not isinstance(result, Refused)]
    (alone,) = store(tmp_path / "store", [work[1]])
    assert alone == results[1]


def test_storage_that_refuses_is_an_error_that_names_the_case(tmp_path):
    (tmp_path / "store" / "d").mkdir(parents=True)
    (tmp_path / "store" / "d" / "records").write_text("no folder")
    work = [assignment(tmp_path, f"case{index}", index) for index in range(3)]
    with pytest.raises(StoreError, match="case 'case0' of 'd' could not be written"):
        store(tmp_path, work)
    assert not [url for url in files.walk(str(tmp_path / "store")) if url.endswith(".partial")]
