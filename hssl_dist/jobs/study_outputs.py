"""What a label-efficiency study leaves behind: `cells.csv`, `table.csv`, `results.json` and `report.html`.

The same cells, pictures and texts give the same bytes, whatever the order of the cells.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from hssl_dist import files
from hssl_dist.jobs.evaluate_outputs import known
from hssl_dist.jobs.study_context import StudyContext
from hssl_dist.jobs.study_files import put
from hssl_dist.jobs.study_report import study_page, value_of
from hssl_dist.report.study_words import exact, outcome_of
from hssl_dist.segmentation.intervals import HierarchicalEstimate
from hssl_dist.segmentation.study import Contrast, Row, StudyResults, summarise_study
from hssl_dist.segmentation.study_cells import StudyCell
from hssl_dist.segmentation.study_convergence import Convergence
from hssl_dist.segmentation.study_pairs import Group, key_of
from hssl_dist.segmentation.study_power import Power


def write_outputs(output: str, cells: Sequence[StudyCell], context: StudyContext) -> StudyResults:
    """Write the four files to the folder `output` and give the statistics in them.

    Raises ValueError as `summarise_study` does, and StorageError.
    """
    results = summarise_study(cells, context.questions, context.intervals, context.planned)
    texts = {
        "cells.csv": cells_csv(cells),
        "table.csv": table_csv(results),
        "report.html": study_page(results, context),
        "results.json": results_json(results, context),  # the last: it says of what all of them were made
    }
    for name, text in texts.items():
        put(files.join(output, name), text.encode())
    return results


# -------------------------------------------------------------------------------------------------- the texts


def cells_csv(cells: Iterable[StudyCell]) -> str:
    """A line per cell, case and class; an empty Dice where the class is in neither label nor prediction."""
    rows = (
        (*_cell_columns(cell), case.case, case.patient, name, "" if dice is None else exact(dice))
        for cell in sorted(cells, key=key_of)
        for case in cell.cases
        for name, dice in case.dice.items()
    )
    heading = ("task", "fraction", "arm", "subset", "seed", "part", "model", "run_id")
    return _csv((*heading, "case", "patient", "class", "dice"), rows)


def _cell_columns(cell: StudyCell) -> tuple[object, ...]:
    return (
        cell.task, exact(cell.fraction), cell.arm, cell.subset, cell.seed, cell.part, cell.model, cell.run_id,
    )  # fmt: skip


def table_csv(results: StudyResults) -> str:
    """A line per task, share and arm; what there is none of is empty. Dice is 0 to 1."""
    heading = (
        "task", "fraction", "arm", "labelled_least", "labelled_most", "subsets", "seeds", "patients", "dice",
        "dice_low", "dice_high", "sd_runs", "sd_subsets", "sd_seeds", "difference", "low", "high", "p",
        "p_holm", "unpaired_runs", "unpaired_patients", "left_out_runs",
    )  # fmt: skip
    return _csv(heading, map(_table_row, results.rows))


def _table_row(row: Row) -> tuple[object, ...]:
    found = row.difference
    return (
        row.group.task, exact(row.group.fraction), row.group.arm, *row.labelled, row.subsets, row.seeds,
        row.patients, *map(exact, (row.dice.value, row.dice.low, row.dice.high)),
        *map(exact, (row.sd, row.sd_subsets, row.sd_seeds)),
        *("" for _ in range(7) if found is None),
        *(() if found is None else _difference_columns(found)), len(row.left_out),
    )  # fmt: skip


def _difference_columns(found: Contrast) -> tuple[object, ...]:
    estimate = found.estimate
    numbers = map(exact, (estimate.value, estimate.low, estimate.high, found.p, found.p_holm))
    return (*numbers, len(found.unpaired_runs), found.unpaired_patients)


def results_json(results: StudyResults, context: StudyContext) -> str:
    """All statistics with settings and lineage; null where there is no number."""
    content = {
        "title": context.title,
        "part": results.part,
        "config_hash": context.config_hash,
        "made_of": context.made_of,
        "lineage": context.lineage,
        "selection": dict(context.selection),
        "questions": {
            "main_arm": results.questions.main_arm,
            "pairs": [list(pair) for pair in results.questions.pairs],
            "difference": results.questions.difference,
        },
        "intervals": results.settings.model_dump(mode="json"),
        "cells": results.cells,
        "missing": [key._asdict() for key in results.missing],
        "comparisons": results.comparisons,
        "primary": [
            {**_contrast(verdict.contrast), "p_primary": known(verdict.p_primary)}
            for verdict in results.verdicts
        ],
        "rows": [_row(row) for row in results.rows],
        "pairs": [_contrast(pair) for pair in results.pairs],
        "gaps": [_contrast(gap) for gap in results.gaps],
        "convergence": [_convergence(found) for found in results.convergence],
    }
    return json.dumps(content, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def _row(row: Row) -> dict[str, Any]:
    return {
        **_group(row.group),
        "labelled": list(row.labelled),
        "subsets": row.subsets,
        "seeds": row.seeds,
        "patients": row.patients,
        "runs": row.runs,
        "left_out_runs": [list(run) for run in row.left_out],
        "dice": _estimate(row.dice),
        "sd_runs": known(row.sd),
        "sd_subsets": known(row.sd_subsets),
        "sd_seeds": known(row.sd_seeds),
        "difference": None if row.difference is None else _contrast(row.difference),
        "power": None if row.power is None else _power(row.power),
    }


def _contrast(found: Contrast) -> dict[str, Any]:
    return {
        "first": _group(found.first),
        "other": _group(found.other),
        "outcome": outcome_of(value_of(found.estimate)),
        **_estimate(found.estimate),
        "unpaired_runs": [list(run) for run in found.unpaired_runs],
        "unpaired_patients": found.unpaired_patients,
        "p": known(found.p),
        "p_holm": known(found.p_holm),
    }


def _estimate(found: HierarchicalEstimate) -> dict[str, Any]:
    return {
        "value": known(found.value),
        "low": known(found.low),
        "high": known(found.high),
        "standard_error": known(found.standard_error),
        "degrees_of_freedom": known(found.degrees_of_freedom),
        "sizes": list(found.sizes),
    }


def _convergence(found: Convergence) -> dict[str, Any]:
    return {
        **_group(found.group),
        "runs": found.runs,
        "curve": [list(point) for point in found.curve],
        "gain": None if found.gain is None else _estimate(found.gain),
        "converged": found.converged,
        "best_step": found.best_step,
    }


def _power(found: Power) -> dict[str, Any]:
    return {
        "difference": found.difference,
        "sizes": dict(found.sizes),
        "dropped": dict(found.dropped),
        "unseen": list(found.unseen),
        "variances": dict(found.variances),
        "standard_error": found.standard_error,
        "power": found.power,
        "needed": dict(found.needed),
    }


def _group(group: Group) -> dict[str, Any]:
    return {"task": group.task, "fraction": group.fraction, "arm": group.arm}


def _csv(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(heading)
    writer.writerows(rows)
    return stream.getvalue()
