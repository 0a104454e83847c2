"""What a worker really takes: its peak resident set over one large case, in a process of its own."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import pytest

from benchmarks.preprocess_data import generated_case
from benchmarks.preprocess_memory import peak_memory
from hssl_dist.jobs.preprocess_cases import SURVEY_BYTES_PER_SOURCE_BYTE, memory_bytes

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
    assert surveyed <= SURVEY_BYTES_PER_SOURCE_BYTE * source_bytes + PROCESS_BYTES


def test_the_memory_of_a_worker_is_bounded(tmp_path):
    check(tmp_path, tmp_path, (160, 256, 256))


@pytest.mark.slow
def test_the_memory_of_a_worker_is_bounded_for_a_large_volume(tmp_path):
    """512 x 512 x 400 voxels of int16: 210 MB."""
    check(Path(tempfile.gettempdir(), "hssl-generated"), tmp_path, (400, 512, 512))
