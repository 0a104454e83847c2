"""python -m benchmarks.loader_table

Write the tables of docs/data.md, between its two markers, from benchmarks/results/loader.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.tables import between, criteria_table, table

ROOT = Path(__file__).parent.parent
RECORD, PAGE = ROOT / "benchmarks" / "results" / "loader.json", ROOT / "docs" / "data.md"
BEGIN, END = "<!-- loader tables: begin -->\n", "<!-- loader tables: end -->\n"

_MB = 1e6

Record = dict[str, Any]


def tables(record: Record) -> str:
    """All tables of a record, in Markdown."""
    parts = [criteria_table(record["criteria"]), *(_local(scenario) for scenario in record["local"])]
    return "\n".join([*parts, _s3(record["s3"]), _conditions(record)])


def page_with(page: str, record: Record) -> str:
    """The page with the record's tables between its markers."""
    return between(page, BEGIN, END, tables(record))


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(page_with(PAGE.read_text(), json.loads(RECORD.read_text())))


def _rate(window: Record) -> str:
    values = window["patches_per_s"]["values"]
    return f"{window['patches_per_s']['median']:.0f} ({min(values):.0f}-{max(values):.0f})"


def _cpu_ms(window: Record) -> str:
    return f"{1e3 * window['cpu_s_per_patch']['median']:.2f}"


def _local(scenario: Record) -> str:
    header = [
        "arm", "warm patches/s", "CPU ms a patch", "cold patches/s", "CPU ms a patch", "read MB", "start s",
        "memory MiB", "of files MiB", "on disk MB",
    ]  # fmt: skip
    rows = [
        [
            arm["arm"],
            _rate(arm["steady"]),
            _cpu_ms(arm["steady"]),
            _rate(arm["first"]),
            _cpu_ms(arm["first"]),
            f"{arm['first']['read_bytes']['median'] / _MB:.0f}",
            f"{arm['startup_s']['median']:.2f}",
            f"{arm['memory_mib']['private']:.0f}",
            f"{arm['memory_mib']['file']:.0f}",
            f"{arm['disk_bytes'] / _MB:.0f}",
        ]
        for arm in scenario["arms"]
    ]
    return table(scenario["scenario"], header, rows)


def _s3(scenario: Record) -> str:
    header = ["arm", "epoch", "patches/s", "CPU ms a patch", "GETs a patch", "bytes fetched per byte used"]
    rows = [
        [
            arm["arm"],
            epoch,
            _rate(arm[window]),
            _cpu_ms(arm[window]),
            f"{arm[window]['gets_per_patch']:.2f}",
            f"{arm[window]['fetched_per_used']:.2f}",
        ]
        for arm in scenario["arms"]
        for epoch, window in (("first", "first"), ("later", "steady"))
    ]
    return table(scenario["scenario"], header, rows)


def _conditions(record: Record) -> str:
    machine = record["machine"]
    before, after = (", ".join(map(str, record["load_average"][when])) for when in ("before", "after"))
    peers = ", ".join(f"{name} {version}" for name, version in record["peers"].items())
    return (
        "### Conditions\n\n"
        f"`{record['command']}`, {record['started']}, {record['minutes']} minutes; code {record['code']}; "
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; "
        f"Python {machine['python']}, torch {machine['torch']}, {peers}. Load average (1, 5, 15 minutes): "
        f"{before} before, {after} after. Medians of {record['rounds']} rounds (smallest-largest).\n"
    )


if __name__ == "__main__":
    main()
