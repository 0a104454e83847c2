"""python -m benchmarks.step_table

Write the tables of docs/speed.md, between its markers, from the committed records:
benchmarks/results/step.json for the CPU and benchmarks/results/step_gpu.json for a GPU. Where a record is not
there, the page says so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.step_phases import PHASES
from benchmarks.tables import between, criteria_table, table

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "speed.md"
RECORDS = {"CPU": RESULTS / "step.json", "GPU": RESULTS / "step_gpu.json"}
COMMANDS = {"CPU": "python -m benchmarks.step --json", "GPU": "bash benchmarks/gpu.sh"}
BEGIN, END = "<!-- step: begin -->\n", "<!-- step: end -->\n"

Record = dict[str, Any]


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(page_with(PAGE.read_text(), {name: read(path) for name, path in RECORDS.items()}))


def read(path: Path) -> Record | None:
    """A record, if it is there."""
    found: Record | None = json.loads(path.read_text()) if path.exists() else None
    return found


def page_with(page: str, records: dict[str, Record | None]) -> str:
    """The page with the records' tables between its markers."""
    return between(page, BEGIN, END, "\n".join(section(name, record) for name, record in records.items()))


def section(name: str, record: Record | None) -> str:
    """One record's tables under a heading, or that there is none."""
    if record is None:
        return (
            f"### On a {name}\n\nNot measured: there is no record yet. `{COMMANDS[name]}` makes one, and no "
            "figure stands here before it has.\n"
        )
    return f"### On a {name}\n\n{tables(record)}"


def tables(record: Record) -> str:
    """All tables of a record, in Markdown."""
    parts = [criteria_table(record["criteria"]).replace("###", "####")]
    for budget in record["budgets"]:
        parts += [_arms(budget), _phases(budget)]
    return "\n".join([*parts, _conditions(record)])


def _arms(budget: Record) -> str:
    rows = []
    for arm in budget["arms"]:
        figures = arm["figures"]
        if arm["kind"] == "matmul":
            continue
        if figures is None:
            rows.append([arm["name"], f"cannot run: {arm['cannot_run']}", *[""] * 7])
            continue
        rates = figures["samples_per_s_of_turns"]
        rows.append(
            [
                arm["name"],
                " x ".join(map(str, arm["about"]["patch"])),
                str(arm["about"]["samples_per_step"]),
                f"{figures['samples_per_s']:.3g} ({min(rates):.3g}-{max(rates):.3g})",
                f"{figures['megavoxels_per_s']:.3g}",
                _number(figures["cpu_s_per_sample"], ".3g"),
                _number(figures.get("flops_per_s", 0) / 1e9 or None, ".4g"),
                _number(figures.get("of_ceiling"), ".0%"),
                f"{figures.get('gpu_mib', figures['memory_mib']):.0f}",
            ]
        )
    header = [
        "arm",
        "patch",
        "batch",
        "samples/s",
        "million voxels/s",
        "processor s per sample",
        "GFLOP/s",
        "of the ceiling",
        "peak MiB",
    ]
    ceiling = budget["ceiling_flops_per_s"]
    title = budget["budget"] + (f", matrix products {ceiling / 1e9:.4g} GFLOP/s" if ceiling else "")
    return table(title, header, rows).replace("###", "####")


def _phases(budget: Record) -> str:
    rows = []
    for arm in budget["arms"]:
        if figures := arm["figures"]:
            phases = [f"{figures['shares'][name]:.1%}" for name in PHASES]
            rows.append([arm["name"], *phases, _number(figures.get("overhead"), ".1%")])
    header = ["arm", *PHASES, "overhead"]
    return table(f"{budget['budget']}: share of the training thread's time", header, rows).replace(
        "###", "####"
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _conditions(record: Record) -> str:
    known = record["machine"]
    where = known.get("gpu") or f"{known['processor']}, {known['cores']} cores, {known['memory_gib']} GiB"
    before, after = (", ".join(map(str, record["load_average"][when])) for when in ("before", "after"))
    versions = ", ".join(f"{name} {version}" for name, version in record["peers"].items()) or "no peers"
    settings = record["settings"]
    return (
        "#### Conditions\n\n"
        f"`{record['command']}`, {record['started']}, {record['minutes']} minutes; code {record['code']}; "
        f"{where}; Python {known['python']}, torch {known['torch']}, {versions}. Load average (1, 5, 15 "
        f"minutes): {before} before, {after} after. Medians (smallest-largest) of {settings['rounds']} turns "
        f"of about {settings['turn_s']:g} s, one step at least.\n"
    )


if __name__ == "__main__":
    main()
