"""python -m benchmarks.preprocess_table

Write the tables of docs/preprocessing.md, between its two markers, from benchmarks/results/preprocess.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.tables import between, criteria_table, table

ROOT = Path(__file__).parent.parent
RECORD, PAGE = ROOT / "benchmarks" / "results" / "preprocess.json", ROOT / "docs" / "preprocessing.md"
BEGIN, END = "<!-- tables: begin -->\n", "<!-- tables: end -->\n"

Record = dict[str, Any]


def tables(record: Record) -> str:
    """All tables of a record, in Markdown."""
    parts = [
        criteria_table(record["criteria"]),
        _chain(record["chain"], "equivalent", "The whole chain, beside MONAI's equivalent one"),
        _chain(record["chain"], "spared", "The same, where MONAI is given crop, statistics and grid"),
        _resampling(record["resampling"]),
        _sizes(record["sizes"]),
    ]
    if "scaling" in record:
        parts.append(_scaling(record["scaling"]))
    return "\n".join([*parts, _conditions(record)])


def page_with(page: str, record: Record) -> str:
    """The page with the record's tables between its markers."""
    return between(page, BEGIN, END, tables(record))


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(page_with(PAGE.read_text(), json.loads(RECORD.read_text())))


def _chain(rows: Record, which: str, title: str) -> str:
    header = [
        "volumes", "ours, ms a case", "MONAI", "ratio", "ratio without writing", "ours, MB", "MONAI, MB",
        "largest difference", "labels that differ",
    ]  # fmt: skip
    lines = [
        [
            name,
            f"{1e3 * row['ours']['cpu_s'] / row['cases']:.1f}",
            f"{1e3 * row[which]['cpu_s'] / row['cases']:.1f}",
            f"{row[which]['ratio']:.2f}",
            f"{row[which]['ratio_without_writing']:.2f}",
            f"{row['ours']['growth_mb']:.0f}",
            f"{row[which]['growth_mb']:.0f}",
            f"{row[which]['max_error_std']:.1e}",
            f"{100 * row[which]['other_label_share']:.2f} %",
        ]
        for name, row in rows.items()
    ]
    return table(title, header, lines)


def _resampling(rows: Record) -> str:
    header = ["volumes", "ours, s", "nnU-Net, s", "ratio", "mean difference", "99th percentile", "label Dice"]
    lines = [
        [
            name,
            f"{row['ours_cpu_s']:.2f}",
            f"{row['nnunet_cpu_s']:.2f}",
            f"{row['ratio']:.1f}",
            f"{row['mean_difference_std']:.1e}",
            f"{row['difference_99_percentile_std']:.1e}",
            f"{row['label_dice']:.3f}",
        ]
        for name, row in rows.items()
    ]
    return table("Cubic resampling alone, beside nnU-Net's", header, lines)


def _sizes(rows: Record) -> str:
    header = ["volumes", "ours, MB", "nnU-Net, MB", "ratio", "largest error", "rms error"]
    lines = [
        [
            name,
            f"{row['ours_bytes'] / 1e6:.2f}",
            f"{row['nnunet_bytes'] / 1e6:.2f}",
            f"{row['ratio']:.2f}",
            f"{row['max_error_std']:.1e}",
            f"{row['rms_error_std']:.1e}",
        ]
        for name, row in rows.items()
    ]
    return table("What is stored of the images", header, lines)


def _scaling(rows: Record) -> str:
    header = ["volumes", "cases", "rounds", "one CPU, s", "two CPUs, s", "ratio"]
    lines = [
        [
            name,
            f"{row['cases']}",
            f"{row['rounds']}",
            f"{row['one_cpu_s']:.1f}",
            f"{row['two_cpus_s']:.1f}",
            f"{row['ratio']:.2f}",
        ]
        for name, row in rows.items()
    ]
    return table("The job's tasks on Ray", header, lines)


def _conditions(record: Record) -> str:
    machine = record["machine"]
    before, after = (", ".join(map(str, record["load_average"][when])) for when in ("before", "after"))
    rounds = ", ".join(f"{name} {row['rounds']}" for name, row in record["chain"].items())
    peers = ", ".join(f"{name} {version}" for name, version in record["peers"].items())
    return (
        "### Conditions\n\n"
        f"`{record['command']}`, {record['started']}, {record['minutes']} minutes; code {record['code']}; "
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; "
        f"Python {machine['python']}, torch {machine['torch']}, {peers}. Load average (1, 5, 15 minutes): "
        f"{before} before, {after} after. Medians of rounds: {rounds}.\n"
    )


if __name__ == "__main__":
    main()
