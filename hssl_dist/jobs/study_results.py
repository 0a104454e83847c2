"""A study's results out of its finished cells: what it asks, what the page tells beside the answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from hssl_dist import files
from hssl_dist.config.finetune import SCRATCH
from hssl_dist.errors import MissingError, TrackingError
from hssl_dist.jobs.hardware import use_hardware
from hssl_dist.jobs.lineage import code_version
from hssl_dist.jobs.study_context import StudyContext
from hssl_dist.jobs.study_embeddings import embedding_map
from hssl_dist.jobs.study_outputs import write_outputs
from hssl_dist.jobs.study_pictures import draw_task_cases
from hssl_dist.records import KeepLargest, content_hash
from hssl_dist.segmentation.study import Questions
from hssl_dist.segmentation.study_cells import StudyCell
from hssl_dist.segmentation.study_pairs import CellKey, unlike_precisions
from hssl_dist.tracking import attach_run
from hssl_dist.tracking.history import metric_history

if TYPE_CHECKING:
    import torch

    from hssl_dist.config.study import ArmConfig, StudyConfig
    from hssl_dist.console import Console
    from hssl_dist.jobs.study_cells import Pretrained
    from hssl_dist.jobs.study_plan import Plan
    from hssl_dist.records import Manifest
    from hssl_dist.report.study import Cases, EmbeddingMap

Result = TypeVar("Result")

TITLES = {
    "scratch": "Scratch",
    "image": "Image level",
    "hssl-single": "Single-domain HSSL",
    "hssl-multi": "Multi-domain HSSL",
    "hssl-multi-own": "Weighted multi-domain HSSL",
    "hssl-multi-mixed": "Mixed multi-domain HSSL",
    "hssl-multi-fast": "Fast multi-domain HSSL",
    "restoration": "Restoration",
    "hssl-restoration": "HSSL + restoration",
}
"""What the page calls the default arms and those of configs/study/; others have their own names."""

_WAYS: Mapping[KeepLargest | None, str] = {
    "never": "all components",
    "foreground": "the largest component of the foreground",
    "class": "the largest component of each class",
    None: "what is not known",
}

PAGE, RESULTS = "report.html", "results.json"
_TEXTS = ("cells.csv", "table.csv", PAGE, RESULTS)


def write_results(
    config: StudyConfig,
    plan: Plan,
    manifests: Mapping[str, Manifest],
    cells: Sequence[StudyCell],
    pretrained: Sequence[Pretrained],
    summary: Mapping[str, Any],
    console: Console,
) -> None:
    """Tables, JSON and page to the study's folder and its MLflow run; there must be a cell. What is there of
    the same cells, summary and code stays.

    `manifests` are of all datasets it draws from. Results outlive models and runs: what of the page needs one
    that is gone, or a server that does not answer, is left out: the page says so, and the next call tries it
    again. Raises the errors of reading models and cases, and StorageError.
    """
    content = [cell.model_dump(mode="json") for cell in cells]
    made_of = content_hash({"summary": dict(summary), "cells": content, "code": code_version()})
    if made_of == _made_of(config):
        return
    device, warnings = use_hardware(config.threads), _warnings(summary, cells)
    known = len(warnings)
    cases = _cases(config, cells, device, warnings)
    embeddings = _embeddings(config, plan, manifests, pretrained, device, warnings)
    health = _health(config, pretrained, warnings)
    context = StudyContext(
        title=f"Study {config.name}",
        questions=Questions(
            main_arm=config.claim, pairs=config.contrasts, arms=tuple(arm.name for arm in config.arms)
        ),
        config_hash=summary["config_hash"],
        intervals=config.intervals,
        titles=TITLES,
        arms=[(TITLES.get(arm.name, arm.name), about_arm(arm)) for arm in config.arms],
        planned=[
            CellKey(cell.task.dataset, cell.fraction, cell.arm.name, cell.subset, cell.seed)
            for cell in plan.cells
        ],
        selection=_selection(config, cells, summary),
        lineage=_lineage(manifests, pretrained, cells, summary),
        cases=cases,
        embeddings=embeddings,
        health=health,
        warnings=warnings,
        made_of=made_of if len(warnings) == known else "",  # what is left out is tried again
    )
    write_outputs(config.results, cells, context)
    _log(config, summary["run_id"], console)


def about_arm(arm: ArmConfig) -> str:
    """What an arm's networks start from, in words."""
    if arm.start == SCRATCH:
        return "new weights"
    seen = "the task's own images" if arm.domains == "own" else "images of all datasets"
    if arm.own_weight != 1.0:
        seen += f", the task's own {arm.own_weight:g} times as often"
    if arm.block_size is not None:
        seen += f", in blocks of {arm.block_size} of a task"
    for stage, changes in (("encoder", arm.encoder), ("decoder", arm.decoder)):
        if (rate := changes.get("learning_rate")) is not None:
            seen += f"; {stage}'s stage at a learning rate of {rate:g}"
    return f"pretrained without labels on {seen}; taken over: {' and '.join(arm.parts)}"


def _made_of(config: StudyConfig) -> str | None:
    """The hash of what the results that are there were made of; None if one of them is not there."""
    urls = [files.join(config.results, name) for name in _TEXTS]
    if not all(files.exists(url) for url in urls):
        return None
    found: str | None = json.loads(files.read(files.join(config.results, RESULTS))).get("made_of")
    return found


def _selection(
    config: StudyConfig, cells: Sequence[StudyCell], summary: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """What was chosen on whom, and who has looked at the patients that are scored."""
    said = [("chosen on validation patients", "the best step of each fine-tuning")]
    for task in config.tasks:
        chosen = {arm.name for arm in config.arms if arm.training(task).keep_largest == "auto"}
        ways = Counter(
            cell.keep_largest for cell in cells if cell.task == task.dataset and cell.arm in chosen
        )
        told = ", ".join(f"{text} in {ways[way]}" for way, text in _WAYS.items() if ways[way])
        if told:
            said.append(
                (f"chosen on validation patients, {task.dataset}", f"of predictions are kept: {told}")
            )
    if summary["part"] == "validation" and summary["pretrained"]:
        said.append(("seen, unlabelled, by pretraining", "the images of the validation patients"))
    for dataset, found in summary["looks"].items():
        looks = found["looks"]
        told = f"{found['patients']}, scored under {looks} config{'' if looks == 1 else 's'} so far"
        if found.get("evaluated"):
            told += f"; looked at before by hssl evaluate of {', '.join(found['evaluated'])}"
        said.append((f"{summary['part']} patients of {dataset}", told))
    return said


def _lineage(
    manifests: Mapping[str, Manifest],
    pretrained: Sequence[Pretrained],
    cells: Sequence[StudyCell],
    summary: Mapping[str, Any],
) -> dict[str, Any]:
    return {
        "run": summary["run_id"],
        "manifests": {name: manifest.sha256 for name, manifest in sorted(manifests.items())},
        "pretrained": {item.name: item.model for item in pretrained},
        "code of the cells": ", ".join(sorted({cell.code_version for cell in cells})),
        "code of this report": code_version(),
    }


def _unless_gone(what: str, make: Callable[[], Result], warnings: list[str]) -> Result | None:
    """What is made; None and a warning if a model, a run or a case that it needs is gone or out of reach."""
    try:
        return make()
    except (MissingError, TrackingError) as error:
        warnings.append(f"{what}: left out, {error}")
        return None


def _cases(
    config: StudyConfig, cells: Sequence[StudyCell], device: torch.device, warnings: list[str]
) -> list[Cases]:
    """Pictures of each task that has the claim's arm beside scratch."""
    drawn = []
    for task in sorted({cell.task for cell in cells}):
        make = partial(
            draw_task_cases,
            [cell for cell in cells if cell.task == task],
            config.claim,
            store=config.store,
            tracking=config.tracking,
            titles=TITLES,
            device=device,
            overlap=config.overlap,
        )
        drawn.append(_unless_gone(f"pictures of {task}", make, warnings))
    return [cases for cases in drawn if cases is not None]


def _embeddings(
    config: StudyConfig,
    plan: Plan,
    manifests: Mapping[str, Manifest],
    pretrained: Sequence[Pretrained],
    device: torch.device,
    warnings: list[str],
) -> list[EmbeddingMap]:
    """Where the encoders that the claim's arm starts from put all cases, of the first seed that has them."""
    own = [item for item in pretrained if config.claim in item.arms]
    sizes = {item.name: item.config.sampling.patch_size for item in plan.pretrainings}
    mapped = []
    for item in own:
        if item.seed != own[0].seed:
            continue
        make = partial(
            embedding_map,
            _called(item, (config.claim,)),
            item.model,
            tuple(manifests),
            store=config.store,
            tracking=config.tracking,
            patch_size=sizes[item.name],
            device=device,
        )
        mapped.append(_unless_gone(f"embedding map of {item.name}", make, warnings))
    return [found for found in mapped if found is not None]


def _health(
    config: StudyConfig, pretrained: Sequence[Pretrained], warnings: list[str]
) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Every metric of each pretraining, by what the page calls it."""
    found = {}
    for item in pretrained:
        make = partial(metric_history, config.tracking, item.run_id)
        history = _unless_gone(f"health curves of {item.name}", make, warnings)
        if history is not None:
            found[_called(item, item.arms)] = history
    return found


def _called(item: Pretrained, arms: Sequence[str]) -> str:
    """A pretraining by its arms, seed and tasks."""
    names = " and ".join(TITLES.get(arm, arm) for arm in arms)
    return f"{names}, seed {item.seed}, for {' and '.join(item.tasks)}"


def _warnings(summary: Mapping[str, Any], cells: Sequence[StudyCell]) -> list[str]:
    """What a reader has to know before any number."""
    said = [f"{failed['name']} failed: {failed['reason']}" for failed in summary["failed"]]
    if summary["unmatched_budgets"]:
        said.append("Budgets do not match: some arms may see more samples, or are fine-tuned otherwise.")
    if summary["look_again"] and any(found["looks"] > 1 for found in summary["looks"].values()):
        said.append("These patients had been scored by studies of other configs before this one.")
    for task, count in unlike_precisions(cells).items():
        said.append(
            f"{count} cells of {task} were trained in another precision than those from scratch that they "
            "are paired with (where training.precision is auto, hardware decides): rounding may be part of "
            "the difference."
        )
    return said


def _log(config: StudyConfig, run_id: str, console: Console) -> None:
    tracked = attach_run(config.tracking, run_id, warn=console.warn, folder=config.folder)
    for name in _TEXTS:
        tracked.log_text(f"{config.part}/{name}", files.read(files.join(config.results, name)).decode())
    tracked.close()
