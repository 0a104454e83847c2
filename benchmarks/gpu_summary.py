"""python -m benchmarks.gpu_summary FOLDER [FAILED ...]

The tables of what `benchmarks/gpu.sh` wrote into a folder, in Markdown; FAILED is what it could not do.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import checkpoint, step_table, trace

TABLES = {
    "step_gpu.json": step_table.tables,
    "trace_encoder.json": trace.tables,
    "trace_decoder.json": trace.tables,
    "checkpoint_gpu.json": checkpoint.table,
}


def summary(folder: Path, failed: list[str]) -> str:
    """A section for each file; what is missing is said first."""
    parts = ["# On this GPU" if not failed else "# On this GPU, not all of it"]
    parts += [f"- {reason}" for reason in failed]
    for name, tables in TABLES.items():
        if (folder / name).exists():
            record: dict[str, Any] = json.loads((folder / name).read_text())
            parts += [f"## {name}", tables(record)]
    tests = folder / "tests.txt"
    if tests.exists():
        parts += ["## tests marked gpu", tests.read_text().strip().splitlines()[-1]]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write(summary(Path(sys.argv[1]), sys.argv[2:]))
