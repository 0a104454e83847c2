"""python -m benchmarks.study_gains TASK STUDY/ARM ... [--share 0.05] [--part validation] [--scratch STUDY]

What arms of committed studies gain over their pairs from scratch, in points of Dice: a line for each seed of
the pretraining with the gain of each label subset, then all runs together. `--scratch` names the study whose
cells from scratch they are compared with, by default the arm's own; `--subsets 5` takes the first five alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path

from hssl_dist.jobs.study_cells import read_cell
from hssl_dist.segmentation.study_cells import SCRATCH_ARM
from hssl_dist.segmentation.study_pairs import patient_dice

STUDIES = Path(__file__).parent / "results" / "study"

Runs = Mapping[tuple[int, int], float]
"""Mean Dice in points by seed and label subset."""


def main() -> None:
    """Print the gains of each arm."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study_gains", description=__doc__)
    parser.add_argument("task")
    parser.add_argument("arms", nargs="+", metavar="STUDY/ARM")
    parser.add_argument("--share", default="0.05", help="of the labels, as the cells' names have it")
    parser.add_argument("--part", default="validation", choices=["validation", "test"])
    parser.add_argument("--scratch", metavar="STUDY")
    parser.add_argument("--subsets", type=int, default=sys.maxsize)
    given = parser.parse_args()
    for wanted in given.arms:
        study, arm = wanted.split("/")
        before = runs(given.scratch or study, given.part, given.task, given.share, SCRATCH_ARM)
        after = runs(study, given.part, given.task, given.share, arm)
        after = {run: dice for run, dice in after.items() if run[1] < given.subsets}
        sys.stdout.write("\n".join([wanted, *told(before, after), ""]))


def runs(study: str, part: str, task: str, share: str, arm: str) -> Runs:
    """The runs of an arm that are there. Raises FileNotFoundError if there are none."""
    pattern = f"{task}-f{share}-s*-r*-{arm}.json"
    paths = sorted((STUDIES / study / part / "cells").glob(pattern))
    cells = [cell for cell in map(read_cell, map(str, paths)) if cell.arm == arm]
    if not cells:
        raise FileNotFoundError(f"no cell {pattern} in {STUDIES / study / part}")
    return {(cell.seed, cell.subset): 100 * statistics.fmean(patient_dice(cell).values()) for cell in cells}


def told(before: Runs, after: Runs) -> list[str]:
    """The gains of the runs that both have, by seed, and the figures of all. At least one is in both."""
    both = sorted(before.keys() & after.keys())
    gains = {run: after[run] - before[run] for run in both}
    lines = []
    for seed in dict.fromkeys(seed for seed, _ in both):
        own = [gain for run, gain in gains.items() if run[0] == seed]
        shown = " ".join(f"{gain:+.1f}" for gain in own)
        lines.append(f"  seed {seed}: {shown}, mean {statistics.fmean(own):+.1f}")
    first, last = (statistics.fmean(arm[run] for run in both) for arm in (before, after))
    above = sum(gain > 0 for gain in gains.values())
    spread = f", standard deviation {statistics.stdev(gains.values()):.1f}" if len(both) > 1 else ""
    return [*lines, f"  {first:.1f} to {last:.1f}, {last - first:+.1f}: {above} of {len(both)} gain{spread}"]


if __name__ == "__main__":
    main()
