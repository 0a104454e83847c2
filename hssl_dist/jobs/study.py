"""`hssl study`: pretrain each arm once per seed, fine-tune and score every cell, keep what each gave.

<output>/<name>/
  study.json                what the study was started with, and its run in MLflow
  pretrained/<name>.json    a finished pretraining, `study_cells.Pretrained`
  <part>/cells/<cell>.json  a finished cell, `segmentation.study_cells.StudyCell`
  <part>/scores/<cell>/     what `hssl evaluate` wrote of it
  <part>/summary.json       how far the study is
  tracking/                 what MLflow has not been told yet, see `tracking.spool`

    study_plan.py     which pretrainings and cells there are, and their configs
    study_cells.py    one of them
    study_runners.py  all of them, here or on Ray; study_memory.py says what each takes
    study_ledger.py   who has looked at which patients, out of looks.py
    study_results.py  tables and page, out of study_outputs.py, study_report.py, study_pictures.py and
                      study_embeddings.py
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from hssl_dist import files
from hssl_dist.errors import Interrupted
from hssl_dist.files.sealed_json import read_sealed, sealed
from hssl_dist.jobs import cluster
from hssl_dist.jobs.lineage import lineage
from hssl_dist.jobs.stopping import stop_requests
from hssl_dist.jobs.study_cells import Pretrained, read_cell, run_cell, run_pretraining, with_way
from hssl_dist.jobs.study_files import put
from hssl_dist.jobs.study_ledger import Ledger
from hssl_dist.jobs.study_memory import cell_bytes, pretraining_bytes, volume_bytes
from hssl_dist.jobs.study_plan import Cell, Plan, identity
from hssl_dist.jobs.study_results import PAGE, write_results
from hssl_dist.jobs.study_runners import Failed, run_pieces
from hssl_dist.records import Manifest, Outcome
from hssl_dist.segmentation.study_cells import StudyCell
from hssl_dist.store import list_datasets, read_manifests
from hssl_dist.tracking import Run, start_run, waits
from hssl_dist.training.trajectory import check_same

if TYPE_CHECKING:
    from hssl_dist.config.study import StudyConfig
    from hssl_dist.console import Console

_NOT_LOGGED = {"tracking", "only"}
"""Keys with secrets, and of one run rather than of the study."""

_SELECTION = (
    "the best step of each fine-tuning and, with keep_largest: auto, what of its predictions is kept are "
    "chosen on its validation patients"
)
_UNREGISTERED = (
    "the tracking server does not answer, and only a network that is registered is scored or gone on from: "
    "what is trained now is kept, and the same command again, once the server is back, trains none of it anew"
)


@dataclass(slots=True)
class _State:
    """What a study has so far: finished pieces by name or id, and the reasons of those that failed.

    `settings` are all it was ever started with, by task and arm; `run_id` is its run in MLflow.
    """

    pretrained: dict[str, Pretrained]
    cells: dict[str, StudyCell]
    settings: dict[str, Any]
    run_id: str | None
    failed: dict[str, str] = field(default_factory=dict)

    def left(self, plan: Plan) -> list[Cell]:
        """The cells that have no result yet, in order."""
        return [cell for cell in plan.cells if cell.id not in self.cells]


def run(config: StudyConfig, console: Console) -> Outcome:
    """Run what is left of the study. A piece that fails is told, the rest goes on, a rerun tries it again.

    Raises MissingError for a dataset that is not in the store, ConfigError if the study was started with
    other settings or its test patients have been looked at by another one, TrackingError, and Interrupted
    once a stop was asked for.
    """
    start_s = time.monotonic()
    plan = Plan.of(config)
    manifests = read_manifests(config.store.url, _datasets(config))
    state = _take_up(config, plan, manifests)
    ledger = Ledger(config, manifests)
    ledger.check()
    if state.left(plan.asked(config)):
        try:
            with stop_requests() as should_stop:
                _go_on(config, manifests, state, ledger, console, should_stop)
        except Interrupted:
            _report(config, plan, manifests, state, ledger, console)
            raise
    summary = _report(config, plan, manifests, state, ledger, console)
    return _conclude(config, plan, state, summary, round(time.monotonic() - start_s, 1))


def _report(
    config: StudyConfig,
    plan: Plan,
    manifests: Mapping[str, Manifest],
    state: _State,
    ledger: Ledger,
    console: Console,
) -> dict[str, Any]:
    """The summary; it is written, and so are tables and page of the cells there are."""
    summary = _summary(config, plan, state, ledger)
    _put_json(files.join(config.results, "summary.json"), summary)
    if state.cells:
        cells = [state.cells[cell.id] for cell in plan.cells if cell.id in state.cells]
        pretrained = [
            state.pretrained[item.name] for item in plan.pretrainings if item.name in state.pretrained
        ]
        write_results(config, plan, manifests, cells, pretrained, summary, console)
    return summary


def _datasets(config: StudyConfig) -> tuple[str, ...]:
    """Those that pretrainings or tasks take from the store."""
    seen = config.pretrain.sampling.datasets or list_datasets(config.store.url)
    return tuple(dict.fromkeys((*seen, *(task.dataset for task in config.tasks))))


# ------------------------------------------------------------------------------------------------- its folder


def _take_up(config: StudyConfig, plan: Plan, manifests: Mapping[str, Manifest]) -> _State:
    """What is there of the study. Raises ConfigError if that was made with other settings."""
    about: dict[str, Any] = _read_json(_about_url(config)) or {"run_id": None, "settings": {}}
    before, wanted = about["settings"], identity(config, plan, manifests)
    check_same(config.name, wanted | before, before | wanted)  # more of everything is no change
    return _State(_read_pretrained(config, plan), _read_cells(config, plan), before | wanted, about["run_id"])


def _read_pretrained(config: StudyConfig, plan: Plan) -> dict[str, Pretrained]:
    there = set(files.listing(files.join(config.folder, "pretrained")))
    return {
        item.name: Pretrained.model_validate(_read_json(_pretrained_url(config, item.name))).model_copy(
            update={"arms": item.arms, "tasks": item.tasks}
        )
        for item in plan.pretrainings
        if f"{item.name}.json" in there
    }


def _read_cells(config: StudyConfig, plan: Plan) -> dict[str, StudyCell]:
    there = set(files.listing(files.join(config.results, "cells")))
    return {
        cell.id: with_way(config, cell, read_cell(_cell_url(config, cell)))
        for cell in plan.cells
        if f"{cell.id}.json" in there
    }


def _about_url(config: StudyConfig) -> str:
    return files.join(config.folder, "study.json")


def _pretrained_url(config: StudyConfig, name: str) -> str:
    return files.join(config.folder, "pretrained", f"{name}.json")


def _cell_url(config: StudyConfig, cell: Cell) -> str:
    return files.join(config.results, "cells", f"{cell.id}.json")


def _read_json(url: str) -> Any:
    return read_sealed(files.shown(url), files.read(url)) if files.exists(url) else None


def _put_json(url: str, value: Any) -> None:
    """Write JSON for people and programs; what says so already is left as it is. Raises StorageError."""
    put(url, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


# ---------------------------------------------------------------------------------------------------- running


def _go_on(
    config: StudyConfig,
    manifests: Mapping[str, Manifest],
    state: _State,
    ledger: Ledger,
    console: Console,
    should_stop: Callable[[], bool],
) -> None:
    """Pretrain and run the cells that are left, all as runs nested under the study's."""
    tracked = _start_run(config, manifests, state, ledger, console)
    nested = config.model_copy(update={"tracking": config.tracking.model_copy(update={"parent": tracked.id})})
    plan = Plan.of(nested)
    asked = plan.asked(nested)
    status: Literal["done", "failed", "interrupted"] = "failed"
    try:
        with ExitStack() as stack:
            if config.runner == "ray":
                stack.enter_context(cluster.connect(config.ray, console))
            _pretrain(nested, asked, state, console, should_stop)
            ledger.note()
            _fill_cells(nested, asked, manifests, state, tracked, console, should_stop)
        status = "failed" if state.failed else "done"
    except (Interrupted, KeyboardInterrupt):
        status = "interrupted"
        raise
    finally:
        tracked.log_json(f"{config.part}/summary.json", _summary(config, plan, state, ledger))
        tracked.finish(status)


def _start_run(
    config: StudyConfig,
    manifests: Mapping[str, Manifest],
    state: _State,
    ledger: Ledger,
    console: Console,
) -> Run:
    """The study's own run, the same one every time."""
    params = config.model_dump(mode="json", exclude=_NOT_LOGGED)
    tracked = start_run(
        config.tracking,
        config.name,
        params,
        {"hssl.job": "study", "hssl.part": config.part},
        lineage(ledger.config_hash, manifests.values()),
        run_id=state.run_id,
        warn=console.warn,
        folder=config.folder,
    )
    if waits(config.folder):
        console.warn(_UNREGISTERED)
    tracked.log_json("config.json", params)
    state.run_id = tracked.id
    _put_json(_about_url(config), {"run_id": tracked.id, "settings": state.settings})
    return tracked


def _pretrain(
    config: StudyConfig, plan: Plan, state: _State, console: Console, should_stop: Callable[[], bool]
) -> None:
    """The pretrainings that are not done, each noted as it is."""
    left = [item for item in plan.pretrainings if item.name not in state.pretrained]
    for number, (item, result) in enumerate(
        run_pieces(config, left, run_pretraining, console, should_stop, pretraining_bytes), 1
    ):
        if isinstance(result, Failed):
            state.failed[item.name] = result.reason
        else:
            state.pretrained[item.name] = result
            _put_json(_pretrained_url(config, item.name), sealed(result.model_dump(mode="json")))
        _tell(console, f"pretraining {number} of {len(left)}, {item.name}", result)


def _fill_cells(
    config: StudyConfig,
    plan: Plan,
    manifests: Mapping[str, Manifest],
    state: _State,
    tracked: Run,
    console: Console,
    should_stop: Callable[[], bool],
) -> None:
    """The cells that are not done, each written as it is; those whose pretraining failed have failed too."""
    ready = []
    for cell in state.left(plan):
        if cell.pretraining is None or cell.pretraining in state.pretrained:
            ready.append(cell)
        else:
            state.failed[cell.id] = f"its pretraining {cell.pretraining} failed"
    models = {name: pretrained.model for name, pretrained in state.pretrained.items()}
    volumes = {task.dataset: volume_bytes(manifests[task.dataset]) for task in config.tasks}
    work, need = partial(run_cell, config, models), partial(cell_bytes, config, volumes)
    for number, (cell, result) in enumerate(run_pieces(config, ready, work, console, should_stop, need), 1):
        if isinstance(result, Failed):
            state.failed[cell.id] = result.reason
        else:
            _put_json(_cell_url(config, cell), sealed(result.model_dump(mode="json")))
            state.cells[cell.id] = result
        _tell(console, f"cell {number} of {len(ready)}, {cell.id}", result)
        counts = {"cells_done": len(state.cells), "pieces_failed": len(state.failed)}
        tracked.log_metrics(len(state.cells) + len(state.failed), counts, again=True)


def _tell(console: Console, what: str, result: object) -> None:
    console.say(f"{what}: {f'failed: {result.reason}' if isinstance(result, Failed) else 'done'}")


# ----------------------------------------------------------------------------------------------- what is told


def _summary(config: StudyConfig, plan: Plan, state: _State, ledger: Ledger) -> dict[str, Any]:
    """How far the study is, whether its budgets match, and how its patients were used."""
    return {
        "study": config.name,
        "config_hash": ledger.config_hash,
        "run_id": state.run_id,
        "part": config.part,
        "cells": len(state.cells),
        "planned": len(plan.cells),
        "failed": [{"name": name, "reason": reason} for name, reason in state.failed.items()],
        "pretrained": {name: pretrained.model for name, pretrained in state.pretrained.items()},
        "samples": {name: pretrained.samples for name, pretrained in state.pretrained.items()},
        "unmatched_budgets": config.unmatched_budgets,
        "selection": _SELECTION,
        "looks": ledger.summary(),
        "look_again": config.look_again,
        "output": config.results,
    }


def _conclude(
    config: StudyConfig, plan: Plan, state: _State, summary: dict[str, Any], seconds: float
) -> Outcome:
    looks = max(entry["looks"] for entry in summary["looks"].values())
    by = f"{looks} config{'' if looks == 1 else 's'}"
    page = files.join(config.results, PAGE)
    return Outcome(
        summary | {"report": page if state.cells else None, "seconds": seconds},
        (
            f"study {config.name!r}: {len(state.cells)} of {len(plan.cells)} cells, "
            f"{len(state.pretrained)} of {len(plan.pretrainings)} pretrainings, {seconds:.0f} s",
            f"scored on the {config.part} patients, so far under {by}; "
            + (f"report: {page}" if state.cells else f"results in {config.results}"),
        ),
        "failed" if state.failed else "done",
        tuple(f"{name} failed: {reason}" for name, reason in state.failed.items()),
    )
