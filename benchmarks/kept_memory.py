"""What keeping freed memory saves in a step, and takes: `acceleration.keep_freed_memory` on and off.

    python -m benchmarks.kept_memory [--json] [--quick] [--regions 4 8 16] [--rounds 3] [--steps 2]

Steps of the encoder stage as in `benchmarks.acceleration`, each measurement in a fresh process on one thread,
on and off in turns: milliseconds of processor time a step, the kernel's part of them, page faults, and the
peak resident set of the whole process in MiB, libraries included. Medians of the rounds. Linux with glibc.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.acceleration import configured, flags, medians, stepping
from benchmarks.measuring import CannotRun, load_average, machine, measure


def build_steps(kept: bool, regions: int, steps: int, quick: bool) -> Callable[[], dict[str, float]]:
    """For `measure`: some steps after a first one, with freed memory kept or not."""
    config = configured({"keep_freed_memory": kept}, regions, quick=quick)

    def work() -> dict[str, float]:
        with stepping(config, "encoder", regions) as step:
            before = resource.getrusage(resource.RUSAGE_SELF)
            for _ in range(steps):
                step()
            after = resource.getrusage(resource.RUSAGE_SELF)
        system_ms = 1e3 * (after.ru_stime - before.ru_stime) / steps
        return {
            "ms": 1e3 * (after.ru_utime - before.ru_utime) / steps + system_ms,
            "system_ms": system_ms,
            "faults": (after.ru_minflt - before.ru_minflt) / steps,
            "peak_mib": after.ru_maxrss / 1024,
        }

    return work


def record(regions: Sequence[int], rounds: int, steps: int, *, quick: bool) -> dict[str, Any]:
    """Medians by number of regions and way."""
    before, rows = load_average(), []
    for count in regions:
        found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for _ in range(rounds):
            for kept, each in found.items():
                measured = measure(build_steps, kept, count, steps, quick)
                if isinstance(measured, CannotRun):
                    raise MemoryError(measured.reason)
                each.append(measured.result)
        rows += [{"regions": count, "kept": kept, **medians(each)} for kept, each in found.items()]
    return {
        "machine": machine(),
        "load": [before, load_average()],
        "rounds": rounds,
        "steps": steps,
        "quick": quick,
        "results": rows,
    }


def table(made: dict[str, Any]) -> str:
    """The record for a person."""
    lines = [
        "| regions | freed memory | ms | of the kernel | faults | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for row in made["results"]:
        way = "kept" if row["kept"] else "as glibc has it"
        cells = [f"{row[key]:.0f}" for key in ("ms", "system_ms", "faults", "peak_mib")]
        lines.append(f"| {row['regions']} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = flags(__doc__)
    parser.add_argument("--regions", type=int, nargs="+", default=[4, 8, 16])
    arguments = parser.parse_args()
    rounds, steps = (1, 1) if arguments.quick else (arguments.rounds, arguments.steps)
    made = record([4] if arguments.quick else arguments.regions, rounds, steps, quick=arguments.quick)
    sys.stdout.write(json.dumps(made, indent=2) + "\n" if arguments.json else table(made))


if __name__ == "__main__":
    main()
