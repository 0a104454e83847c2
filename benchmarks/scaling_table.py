"""python -m benchmarks.scaling_table

Write the tables of docs/scaling.md, between its markers: what was measured, from
benchmarks/results/scaling.json if it is there, and the plan for GPUs, computed from its assumptions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.scaling_plan import (
    Row,
    assumptions,
    by_key,
    gpu_counts,
    plan,
    preparation,
)
from benchmarks.tables import between, table

ROOT = Path(__file__).parent.parent
RECORD, PAGE = ROOT / "benchmarks" / "results" / "scaling.json", ROOT / "docs" / "scaling.md"
MEASURED = ("<!-- measured: begin -->\n", "<!-- measured: end -->\n")
PLAN = ("<!-- plan: begin -->\n", "<!-- plan: end -->\n")

Record = dict[str, Any]


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(page_with(PAGE.read_text(), read(RECORD)))


def read(path: Path) -> Record | None:
    """A record, if it is there."""
    found: Record | None = json.loads(path.read_text()) if path.exists() else None
    return found


def page_with(page: str, record: Record | None) -> str:
    """The page with all tables between its markers."""
    return between(between(page, *MEASURED, measured_tables(record)), *PLAN, plan_tables())


def measured_tables(record: Record | None) -> str:
    """The model's pieces and its error; or that nothing was measured."""
    if record is None:
        return (
            "Not measured: there is no record yet. `python -m benchmarks.scaling --json` makes one, and no "
            "figure stands here before it has.\n"
        )
    return "\n".join((_checks(record), _fits(record), _conditions(record)))


def _checks(record: Record) -> str:
    rows = [
        [
            str(row["world"]),
            f"{row['measured_s']:.3f}",
            f"{row['predicted_s']:.3f}",
            f"{row['error']:+.1%}",
            f"{row['compute_s']:.3f}",
            f"{row['gather_s']:.3f}",
            f"{row['gradients_s']:.3f}",
            f"{row['measured_mib']:.0f}",
            f"{row['predicted_mib']:.0f}",
            f"{row['memory_error']:+.1%}",
        ]
        for row in record["checks"]
    ]
    header = [
        "W",
        "step s",
        "predicted",
        "error",
        "compute",
        "gathers",
        "gradients",
        "MiB",
        "predicted",
        "error",
    ]
    worst, worst_memory = (
        max(abs(row[key]) for row in record["checks"]) for key in ("error", "memory_error")
    )
    batch, cores = record["settings"]["config"]["global_batch"], record["machine"]["cores"]
    return (
        table(f"The model against runs of {batch} regions a step on {cores} cores", header, rows)
        + f"\nThe largest error is {worst:.1%} in time and {worst_memory:.1%} in memory.\n"
    )


def _fits(record: Record) -> str:
    fits = record["fits"]
    rows = [
        ["step of one rank", f"{fits['fixed_s']:.3f} s + {fits['s_per_sample']:.3f} s a region"],
        ["its peak memory", f"{fits['fixed_mib']:.0f} MiB + {fits['mib_per_sample']:.0f} MiB a region"],
        ["slowdown of ranks on all cores", f"{fits['slowdown']:.2f}"],
    ]
    rows += [
        [
            f"exchange among {world} ranks",
            f"{fit['latency_s'] * 1e6:.0f} us a round, {fit['bytes_per_s'] / 1e6:.0f} MB/s",
        ]
        for world, fit in fits["exchanges"].items()
    ]
    return table("Its pieces, as fitted", ["piece", "fit"], rows)


def _conditions(record: Record) -> str:
    known = record["machine"]
    before, after = (", ".join(map(str, record["load_average"][when])) for when in ("before", "after"))
    return (
        f"`{record['command']}`, {record['started']}, {record['minutes']} minutes; code {record['code']}; "
        f"{known['processor']}, {known['cores']} cores, {known['memory_gib']} GiB; Python {known['python']}, "
        f"torch {known['torch']}. Load average (1, 5, 15 minutes): {before} before, {after} after. Medians "
        f"of {record['settings']['rounds']} turns.\n"
    )


# ------------------------------------------------------------------------------------------------------- plan


def plan_tables() -> str:
    """The table for GPUs, its walls, what preparing takes, and every assumption."""
    known, counts = assumptions(), gpu_counts()
    costs, rows = plan(known, counts)
    found = preparation(by_key(known))
    network = "; ".join(
        f"{stage} stage {cost.flops / 1e9:.0f} GFLOP and {cost.kept_bytes / 2**20:.0f} MiB kept a region, "
        f"{cost.parameters / 1e6:.1f} million weights"
        for stage, cost in costs.items()
    )
    inputs = [[f"{a.section}: {a.name}", f"{a.value:.6g}", a.kind, a.source] for a in known]
    return "\n".join(
        (
            _times(rows),
            f"Counted, not assumed, for benchmarks/gpu.yaml: {network}.\n",
            _costs(rows),
            _walls(rows),
            _first(rows),
            _preparation(found),
            table("Assumptions", ["input", "value", "kind", "source"], inputs),
        )
    )


def _first(rows: list[Row]) -> str:
    """The wall that is hit first, in a sentence."""
    for row in rows:
        if row.wall.taken >= 1.0:
            return (
                f"The first wall: at {row.gpus} GPUs, {row.wall.name} ({row.wall.taken:.0%} taken). What to "
                f"do: {row.wall.remedy}.\n"
            )
    last = rows[-1]
    return f"No wall up to {last.gpus} GPUs; the nearest is {last.wall.name} ({last.wall.taken:.0%} taken).\n"


def _times(rows: list[Row]) -> str:
    cells = [
        [
            str(row.gpus),
            str(row.global_batch),
            f"{row.per_gpu:g}",
            *(
                f"{1e3 * seconds:.1f}"
                for seconds in (row.compute_s, row.gather_s, row.gradients_s, row.waiting_s, row.data_s)
            ),
            f"{row.samples_per_s:.0f}",
            f"{row.efficiency:.0%}",
            f"{row.memory_gib:.1f}",
        ]
        for row in rows
    ]
    header = ["GPUs", "global batch", "a GPU", "compute ms", "gathers ms", "gradients ms", "slowest rank ms"]
    header += ["reading ms", "regions/s", "efficiency", "GiB a GPU"]
    return table("A step, predicted", header, cells)


def _costs(rows: list[Row]) -> str:
    cells = [
        [
            str(row.gpus),
            f"{row.steps:.0f}",
            f"{row.hours:.2f}",
            f"{row.gpu_hours:.1f}",
            f"{row.dollars:.0f}",
            f"{row.lost_share:.2%}",
            "on" if row.cached else "off",
            f"{row.wanted_bytes_per_s / 1e9:.3g}",
            f"{row.wall.name}, {row.wall.taken:.0%}",
        ]
        for row in rows
    ]
    header = ["GPUs", "steps", "hours", "GPU hours", "dollars", "lost to faults", "cache"]
    header += ["GB/s wanted of the store", "most taken"]
    return table("The plan, predicted", header, cells)


def _walls(rows: list[Row]) -> str:
    """Every resource, how much of it each row takes, and what to do; 1 is all of it."""
    cells = []
    for number, wall in enumerate(rows[0].walls):
        taken = [row.walls[number].taken for row in rows]
        hit = next((str(row.gpus) for row, part in zip(rows, taken, strict=True) if part >= 1.0), "-")
        shown = [f"**{part:.0%}**" if part >= 1.0 else f"{part:.0%}" for part in taken]
        cells.append([wall.name, *shown, hit, wall.remedy])
    header = ["resource", *(f"{row.gpus}" for row in rows), "wall at", "what to do"]
    return table("Walls: how much of each resource is taken, by GPUs", header, cells)


def _preparation(found: dict[str, float]) -> str:
    return (
        f"Preparing the volumes takes {found['core_hours']:.1f} core hours beside reading the sources; they "
        f"are {found['stored_gb']:.0f} GB stored ({found['dollars_per_month']:.0f} dollars a month) and "
        f"{found['decoded_gb']:.0f} GB decoded.\n"
    )


if __name__ == "__main__":
    main()
