"""The peak memory of a worker: one case, surveyed or stored in a process that does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from benchmarks.preprocess_data import CLASSES
from hssl_dist.records import Case, Triple

Work = Literal["survey", "store"]

_WORKER = """
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


def peak_memory(work: Work, root: Path, case: Case, spacing_mm: Triple) -> tuple[int, dict[str, Any]]:
    """Peak resident bytes of a fresh process, its libraries included, and the survey or record it made.

    A generated case is stored below `root`, resampled to `spacing_mm`.
    """
    fields = {slot: getattr(case, slot) for slot in Case.__slots__}
    done = subprocess.run(
        [sys.executable, "-c", _WORKER, json.dumps([work, str(root), spacing_mm, fields, CLASSES])],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    said = json.loads(done.stdout)
    return said["peak_bytes"], said["result"]
