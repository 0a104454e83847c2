"""python -m benchmarks.loss_table

Write the tables of docs/loss.md, between its two markers, from benchmarks/results/loss.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.tables import between, table

ROOT = Path(__file__).parent.parent
RECORD, PAGE = ROOT / "benchmarks" / "results" / "loss.json", ROOT / "docs" / "loss.md"
BEGIN, END = "<!-- tables: begin -->\n", "<!-- tables: end -->\n"

VERDICTS = {True: "reached", False: "**missed**", None: "not measured"}

Record = dict[str, Any]


def tables(record: Record) -> str:
    """All tables of a record, in Markdown."""
    parts = (_criteria, _gradients, _scaling, _wire, _share, _conditions)
    return "\n".join(part(record) for part in parts)


def page_with(page: str, record: Record) -> str:
    """The page with the record's tables between its markers."""
    return between(page, BEGIN, END, tables(record))


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(page_with(PAGE.read_text(), json.loads(RECORD.read_text())))


def _number(value: float | None, form: str = ".3g") -> str:
    return "-" if value is None else format(value, form)


def _criteria(record: Record) -> str:
    rows = [
        [
            criterion["name"],
            _number(criterion["value"]),
            f"{'>=' if criterion['at_least'] else '<='} {_number(criterion['bound'])}",
            VERDICTS[criterion["passed"]],
            criterion["note"] or "",
        ]
        for criterion in record["criteria"]
    ]
    return table("What must be reached", ["requirement", "measured", "bound", "verdict", "note"], rows)


def _gradients(record: Record) -> str:
    checks = record["gradients"]
    splits = sorted(
        {tuple(check["split"]) for check in checks}, key=lambda split: (len(split), len(set(split)))
    )
    found = {(*_case(check), tuple(check["split"])): check for check in checks}
    rows = [
        [*case, *(_error(found.get((*case, split))) for split in splits)]
        for case in sorted(dict.fromkeys(map(_case, checks)), key=lambda case: not case[0].startswith("ours"))
    ]
    header = ["implementation", "precision", *("+".join(map(str, split)) for split in splits)]
    return table("Gradient error, by regions per rank", header, rows)


def _case(check: Record) -> tuple[str, str]:
    size = check["micro_batch"]
    return check["implementation"] + (f", micro-batches of {size}" if size else ""), check["dtype"]


def _error(check: Record | None) -> str:
    """The larger of the weights' and the temperature's error; bold beyond the precision's bound."""
    if check is None:
        return ""
    if check["failure"]:
        return f"**{check['failure']}**"
    worst = max(error for error in (check["weight_error"], check["temperature_error"]) if error is not None)
    return f"{worst:.1e}" if check["exact"] else f"**{worst:.2g}**"


def _scaling(record: Record) -> str:
    rows = []
    for size in sorted({scaling["rows"] for scaling in record["scaling"]}):
        for scaling in (scaling for scaling in record["scaling"] if scaling["rows"] == size):
            cpu_s, pairs = scaling["cpu_s"], scaling["pairs"]
            rows.append(
                [
                    str(size),
                    scaling["implementation"],
                    _number(pairs / 1e6, ".0f" if pairs >= 1e7 else ".1f"),
                    *(
                        [f"cannot run: {scaling['cannot_run']}", "", "", ""]
                        if scaling["cannot_run"]
                        else [
                            _number(scaling["growth_mib"], ".0f"),
                            _number(cpu_s, ".2f"),
                            _number(cpu_s / pairs * 1e9, ".1f"),
                            str(scaling["repetitions"]),
                        ]
                    ),
                ]
            )
    header = [
        "M",
        "implementation",
        "pairs, million",
        "memory growth, MiB",
        "processor s",
        "ns per pair",
        "runs",
    ]
    return table("Memory and time, forward and backward", header, rows)


def _wire(record: Record) -> str:
    rows = [
        [
            str(wire["world_size"]),
            wire["implementation"],
            _number(wire["received_bytes"], ".0f"),
            ", ".join(f"{calls} {name}" for name, calls in wire["collectives"].items()),
            _number(wire["cpu_s"], ".2f"),
        ]
        for wire in record["wire"]
    ]
    header = ["W", "implementation", "bytes a rank receives", "collectives", "processor s, all ranks"]
    return table(f"On several ranks, M = {record['wire'][0]['rows']}, float32", header, rows)


def _share(record: Record) -> str:
    share = record["share"]
    patch = " x ".join(map(str, share["patch_size"]))
    return (
        "### Share of a pretraining step\n\n"
        f"At M = {share['rows']} the loss takes {share['loss_cpu_s']:.2f} s of processor time, the default "
        f"network {share['network_cpu_s']:.0f} s for as many {patch} views (extrapolated from "
        f"{share['timed_views']} views, {share['network_cpu_s_per_view']:.3f} s each): "
        f"{100 * share['share']:.2g} % of the step.\n"
    )


def _conditions(record: Record) -> str:
    machine = record["machine"]
    before, after = (", ".join(map(str, record["load_average"][when])) for when in ("before", "after"))
    peers = ", ".join(f"{name} {version}" for name, version in record["peers"].items()) or "no peers"
    return (
        "### Conditions\n\n"
        f"`{record['command']}`, {record['started']}, {record['minutes']} minutes; code {record['code']}; "
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; "
        f"Python {machine['python']}, torch {machine['torch']}, {peers}. Load average (1, 5, 15 minutes): "
        f"{before} before, {after} after. Medians of {record['repetitions']}. What was predicted to grow "
        f"beyond {record['memory_limit_gib']:g} GiB was not run.\n"
    )


if __name__ == "__main__":
    main()
