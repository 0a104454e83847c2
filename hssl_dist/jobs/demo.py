"""The demo: the whole pipe on phantoms, by the same jobs and parts as on real data, and a report about it.

phantoms -> preprocess -> pretrain on Ray workers -> registry
                                                       |-> fine-tune with few labels -> evaluate -> report
                                          from scratch |-> fine-tune with few labels -> evaluate -|
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from math import nan
from typing import Any

from hssl_dist import files
from hssl_dist.config.demo import DemoConfig
from hssl_dist.config.finetune import SCRATCH
from hssl_dist.config.preprocess import DatasetConfig
from hssl_dist.console import Console
from hssl_dist.errors import Interrupted
from hssl_dist.imaging import write_nifti
from hssl_dist.jobs import cluster, evaluate, finetune, preprocess, pretrain
from hssl_dist.jobs.demo_pictures import draw_cases
from hssl_dist.jobs.demo_plan import DATASET, PATIENTS, SPLIT, Plan
from hssl_dist.jobs.finished import needed
from hssl_dist.jobs.lineage import code_version
from hssl_dist.jobs.preprocess_report import report_url
from hssl_dist.records import Manifest, Outcome, content_hash
from hssl_dist.report import Arm, DatasetRow, DemoData, Stage, demo_report
from hssl_dist.sampling.splits import label_subset, labelled_cases, split_manifest
from hssl_dist.store import read_manifest, read_manifests
from hssl_dist.synthetic import write_phantoms
from hssl_dist.tracking.history import metric_history
from hssl_dist.training.trajectory import trajectory_hash

_LEVELS = ("image", "task", "group")
_TERMS = (*_LEVELS, "dense", "restoration")


class _Diary:
    """The stages so far, each from the end of the one before it, and what the jobs warned of."""

    def __init__(self, console: Console) -> None:
        self.stages: list[Stage] = []
        self.warnings: list[str] = []
        self._console = console
        self._last_s = time.monotonic()

    def done(self, name: str, result: str, warnings: Sequence[str] = ()) -> None:
        """A stage has ended."""
        self.warnings += [f"{name}: {warning}" for warning in warnings]
        now_s = time.monotonic()
        self.stages.append(Stage(name, result, now_s - self._last_s))
        self._console.say(f"{name}: {result} ({now_s - self._last_s:.1f} s)")
        self._last_s = now_s


def run(config: DemoConfig, console: Console) -> Outcome:
    """Run everything below `config.output` and write `report.html` there.

    Running again stores only what changed, and resumes pretraining and fine-tuning or takes them as done.
    Raises ConfigError for an output that is no local folder, Interrupted if pretraining was asked to stop,
    and the errors of the jobs.
    """
    plan, diary = Plan.of(config), _Diary(console)
    datasets = write_phantoms(plan.phantoms, plan.seed, write_nifti, PATIENTS)
    diary.done("phantoms", f"{PATIENTS} patients for each of {len(datasets)} challenges")
    with cluster.connect(plan.ray, console):
        diary.done("start Ray", "a local cluster")
        manifests = _preprocess(plan, datasets, diary, console)
        pretrained = _pretrain(plan, manifests, diary, console)
    starts = {"from the registry": str(pretrained["model"]), "from scratch": SCRATCH}
    arms = [_arm(plan, name, start, diary, console) for name, start in starts.items()]
    data = _report_data(plan, datasets, manifests, pretrained, arms, diary.stages)
    path = files.join(str(plan.root), "report.html")
    files.write(path, demo_report(data).encode())
    return _outcome(plan, data, pretrained, path, diary.warnings)


# ----------------------------------------------------------------------------------------------------- stages


def _preprocess(
    plan: Plan, datasets: Sequence[DatasetConfig], diary: _Diary, console: Console
) -> dict[str, Manifest]:
    outcome = preprocess.run(plan.preprocess(datasets), console)
    manifests = read_manifests(plan.store.url, [dataset.name for dataset in datasets])
    count = sum(len(manifest.cases) for manifest in manifests.values())
    diary.done("preprocess", f"{count} cases in the store", outcome.warnings)
    return manifests


def _pretrain(
    plan: Plan, manifests: Mapping[str, Manifest], diary: _Diary, console: Console
) -> Mapping[str, Any]:
    """The run's name holds what defines it, so a changed demo is a new run and not a refused one."""
    settings = plan.pretrain("demo")
    settings = plan.pretrain(f"demo-{trajectory_hash(settings, manifests)[:8]}")
    outcome = pretrain.run(settings, console)
    if outcome.status == "interrupted":
        raise Interrupted("pretraining has saved a checkpoint; run the demo again to go on")
    summary = outcome.summary
    again = " (done before)" if summary["already_done"] else ""
    needed(summary, settings.name)
    result = f"{summary['steps']} steps on {plan.workers} workers, {summary['model']}{again}"
    diary.done("pretrain", result, outcome.warnings)
    return summary


def _arm(plan: Plan, name: str, start: str, diary: _Diary, console: Console) -> Arm:
    """Fine-tune, evaluate and draw one model; the run's name holds what defines it, as in `_pretrain`."""
    short = name.rpartition(" ")[2]
    tuning = plan.finetune(f"demo-{short}", start)
    made_from = content_hash([tuning.hash(), read_manifest(plan.store.url, DATASET).sha256])
    outcome = finetune.run(plan.finetune(f"demo-{short}-{made_from[:8]}", start), console)
    tuned = outcome.summary
    needed(tuned, name)
    result = f"{len(tuned['patients'])} labelled patients, {tuned['model']}"
    diary.done(f"fine-tune {name}", result, outcome.warnings)
    settings = plan.evaluate(short, tuned["model"])
    outcome = evaluate.run(settings, console)
    scores = json.loads(files.read(outcome.summary["json"]))
    pictures = draw_cases(settings, scores)
    diary.done(f"evaluate {name}", f"mean Dice {outcome.summary['dice_mean'] or nan:.3f}", outcome.warnings)
    history = metric_history(plan.tracking, tuned["run_id"])
    return Arm(
        name=name,
        start="random weights" if start == SCRATCH else start,
        model=tuned["model"],
        run_id=tuned["run_id"],
        loss=history["loss"],
        validation=history.get("val_dice", []),
        dice={
            label: [nan if case["dice"][label] is None else case["dice"][label] for case in scores["cases"]]
            for label in scores["classes"].values()
        },
        pictures=pictures,
    )


# ----------------------------------------------------------------------------------------------------- report


def _report_data(
    plan: Plan,
    datasets: Sequence[DatasetConfig],
    manifests: Mapping[str, Manifest],
    pretrained: Mapping[str, Any],
    arms: Sequence[Arm],
    stages: Sequence[Stage],
) -> DemoData:
    target = manifests[DATASET]
    split = split_manifest(target, SPLIT)
    history = metric_history(plan.tracking, pretrained["run_id"])
    return DemoData(
        stages=stages,
        datasets=[_dataset_row(plan, dataset, manifests[dataset.name]) for dataset in datasets],
        losses={term: history[f"loss_{term}"] for term in _TERMS},
        accuracies={level: history[f"{level}_accuracy"] for level in _LEVELS},
        arms=arms,
        dataset=DATASET,
        classes=target.header.classes,
        training_patients=len(split.train),
        labelled_patients=len(label_subset(split.train, plan.finetune("demo", SCRATCH).labels)),
        test_patients=len(split.test),
        test_cases=len(labelled_cases(target, split.test)),
        workers=plan.workers,
        lineage=[
            *((f"manifest of {name}", manifest.sha256) for name, manifest in sorted(manifests.items())),
            ("pretraining run", pretrained["run_id"]),
            ("pretrained model", pretrained["model"]),
            ("code", code_version()),
        ],
    )


def _dataset_row(plan: Plan, config: DatasetConfig, manifest: Manifest) -> DatasetRow:
    return DatasetRow(
        name=config.name,
        layout=config.layout,
        task=manifest.header.task,
        group=manifest.header.group,
        cases=len(manifest.cases),
        patients=len({case.patient for case in manifest.cases}),
        labelled=sum(case.labelled for case in manifest.cases),
        report=files.relative(report_url(plan.store.url, config.name), str(plan.root)),
    )


def _outcome(
    plan: Plan, data: DemoData, pretrained: Mapping[str, Any], path: str, warnings: Sequence[str]
) -> Outcome:
    dice = {arm.name: arm.overall for arm in data.arms}
    return Outcome(
        summary={
            "report": path,
            "output": str(plan.root),
            "pretrained": pretrained["model"],
            "models": {arm.name: arm.model for arm in data.arms},
            "dice_mean": dice,
            "stages": {stage.name: round(stage.seconds, 1) for stage in data.stages},
        },
        lines=(
            *(f"mean Dice {name}: {'-' if mean is None else f'{mean:.3f}'}" for name, mean in dice.items()),
            f"report: {path}",
        ),
        warnings=tuple(warnings),
    )
