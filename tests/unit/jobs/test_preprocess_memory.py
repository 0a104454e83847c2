"""What a worker really takes: its peak resident set over one large case, in a process of its own."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks.preprocess_data import generated_case
from benchmarks.preprocess_memory import peak_memory
from hssl_dist.imaging import write_nifti
from hssl_dist.jobs.preprocess_cases import memory_bytes, survey_memory_bytes
from hssl_dist.records import Case

MB = 1_000_000
PROCESS_BYTES = 260 * MB
"""Python, the libraries, the slabs and shards being worked on."""


def check(folder, tmp_path, shape):
    spacing_mm, target_mm = (1.5, 0.8, 0.8), (1.4, 0.9, 0.9)
    case = generated_case(folder, "x".join(map(str, shape)), shape, spacing_mm)
    voxels = math.prod(shape)
    raw_bytes = 2 * voxels
    surveyed, _ = peak_memory("survey", tmp_path, case, target_mm)
    stored, record = peak_memory("store", tmp_path, case, target_mm)
    assert record["geometry"]["shape"] != record["geometry"]["oriented_shape"]
    for peak in (surveyed, stored):
        assert peak <= 4 * raw_bytes + 300 * MB
    growth = math.prod(spacing_mm) / math.prod(target_mm)
    assert stored <= memory_bytes(voxels, math.ceil(growth * voxels)) + PROCESS_BYTES
    source_bytes = sum(Path(url).stat().st_size for url in (*case.images, case.label))
    assert surveyed <= survey_memory_bytes(case, source_bytes) + PROCESS_BYTES


def test_the_memory_of_a_worker_is_bounded(tmp_path):
    check(tmp_path, tmp_path, (160, 256, 256))


@pytest.mark.soak
def test_the_memory_of_a_worker_is_bounded_for_a_large_volume(tmp_path):
    """512 x 512 x 400 voxels of int16: 210 MB."""
    check(Path(tempfile.gettempdir(), "hssl-generated"), tmp_path, (400, 512, 512))


def test_a_small_file_of_many_voxels_is_planned_for_by_its_header(tmp_path):
    """A gzip of zeros: a thousandth of what it holds."""
    path = tmp_path / "zeros.nii.gz"
    write_nifti(path, np.zeros((256, 256, 128), np.int16), np.eye(4))
    size_bytes = path.stat().st_size
    assert size_bytes < 2 * 256 * 256 * 128 / 500
    case = Case("d", "c", "c", (str(path),), None, ("mr",))
    assert survey_memory_bytes(case, size_bytes) == memory_bytes(256 * 256 * 128, 0)


def test_a_file_without_a_readable_header_is_planned_for_by_its_size(tmp_path):
    (tmp_path / "none.nii.gz").write_bytes(b"nothing")
    broken = Case("d", "c", "c", (str(tmp_path / "none.nii.gz"),), None, ("mr",))
    assert survey_memory_bytes(broken, 7) == 7
    other = Case("d", "c", "c", (str(tmp_path / "scan.nrrd"),), None, ("mr",))
    assert survey_memory_bytes(other, 1000) == 16_000
