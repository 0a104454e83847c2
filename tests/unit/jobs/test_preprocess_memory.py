"""What a worker really takes: its peak resident set over one large case, in a process of its own."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from benchmarks.preprocess_data import CLASSES, generated_case
from hssl_dist.jobs.preprocess_cases import SURVEY_BYTES_PER_SOURCE_BYTE, memory_bytes

MB = 1_000_000
PROCESS_BYTES = 260 * MB
"""Python, the libraries, the slabs and shards being worked on."""

WORKER = """
import json, sys
from pathlib import Path
from hssl_dist.config.preprocess import StorageConfig
from hssl_dist.imaging import ChannelRecipe, Recipe
from hssl_dist.jobs.preprocess_cases import Assignment, store_cases, survey_cases
from hssl_dist.records import Case

what, root, spacing_mm, case, classes = json.loads(sys.argv[1])
case["images"], case["modalities"] = tuple(case["images"]), tuple(case["modalities"])
case, classes = Case(**case), {int(value): name for value, name in classes.items()}
if what == "survey":
    (result,) = survey_cases([case], classes, 1 << 30)
else:
    ct = ChannelRecipe(rule="ct", clip_low=-150, clip_high=250, offset=40, scale=60)
    recipe = Recipe(spacing_mm=spacing_mm, channels=(ct,), classes=classes, storage={})
    work = Assignment(case, "task", "group", (), (), "0" * 64)
    (result,) = store_cases([work], root, recipe, StorageConfig(), 1 << 30)
(peak,) = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
print(json.dumps({"peak_bytes": int(peak) * 1024, "result": json.loads(result.to_json())}))
"""


def work(what, root, case, spacing_mm):
    """Peak resident bytes of a fresh process that does it, and what came of it."""
    fields = {slot: getattr(case, slot) for slot in type(case).__slots__}
    done = subprocess.run(
        [sys.executable, "-c", WORKER, json.dumps([what, str(root), spacing_mm, fields, CLASSES])],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    said = json.loads(done.stdout)
    return said["peak_bytes"], said["result"]


def check(folder, tmp_path, shape):
    spacing_mm, target_mm = (1.5, 0.8, 0.8), (1.4, 0.9, 0.9)
    case = generated_case(folder, "x".join(map(str, shape)), shape, spacing_mm)
    voxels = math.prod(shape)
    raw_bytes = 2 * voxels
    surveyed, _ = work("survey", tmp_path, case, target_mm)
    stored, record = work("store", tmp_path, case, target_mm)
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
