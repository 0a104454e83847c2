"""`hssl finetune`: train a segmentation network on a dataset's labels, from a model or from scratch.

manifest -> patients of the split and of the label fraction -> network, with the weights of the model
         -> training, the best of its validations -> folder of the run -> registry

<runs>/<name>/
  checkpoints/      the state of an unfinished run, see `training.checkpoint`
  not-finite/       the samples of a step that was refused, see `training.not_finite`
  model/            the best weights: model.safetensors, model.json
  done.json         what a finished run registered, and under which trajectory
  tracking/         what MLflow has not been told yet, see `tracking.spool`
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from hssl_dist import files
from hssl_dist.config.finetune import FinetuneConfig
from hssl_dist.console import Console
from hssl_dist.jobs import cluster
from hssl_dist.jobs.ancestry import Ancestry, ancestry, leak_warning
from hssl_dist.jobs.finetune_delivery import Delivered, deliver, ways
from hssl_dist.jobs.finetune_patients import Patients, choose_patients
from hssl_dist.jobs.finished import NOT_REGISTERED, Wanted, read_done, write_done
from hssl_dist.jobs.hardware import use_hardware
from hssl_dist.jobs.lineage import lineage
from hssl_dist.jobs.publish import publish, register_safe
from hssl_dist.jobs.starting import Start, other_network, starting_point
from hssl_dist.jobs.stopping import stop_requests
from hssl_dist.memory import freed_memory_kept, within_memory
from hssl_dist.networks.weights import ModelCard
from hssl_dist.records import Lineage, Manifest, Outcome, content_hash
from hssl_dist.report.curves import line_chart
from hssl_dist.report.figures import png
from hssl_dist.sampling.splits import nested_sizes
from hssl_dist.sampling.supervised import DRAWS_VERSION, SupervisedLoader
from hssl_dist.store import open_reader, read_manifest
from hssl_dist.tracking import Run, Version, start_run
from hssl_dist.training.checkpoint import CheckpointStore
from hssl_dist.training.precision import resolved
from hssl_dist.training.supervised import Saving, run_supervised, saved_history
from hssl_dist.training.trajectory import check_same
from hssl_dist.training.validation import Validation

_WHERE_NOT_WHAT = {
    "store", "cache", "runs", "tracking", "register_as", "alias", "runner", "ray", "threads",
}  # fmt: skip
"""Keys that say where the job runs, not what it computes: not hashed into the lineage, not logged."""

_NOT_VALIDATED = "no validation patient shows a class: the last weights were kept; raise split.validation"


def run(config: FinetuneConfig, console: Console) -> Outcome:
    """Train, register the weights that validated best with their lineage, and say how they validated.

    The same name again goes on from the newest checkpoint, or gives the result of the run if it is done, with
    what the registry lacks of it; with another config it is refused. Raises MissingError and
    ConfigError for what the config names and what does not fit together, CheckpointError for a model that
    does not fit, NonFiniteError, OutOfMemoryError, WorkerError, TrackingError, and Interrupted once a stop
    was asked for and a checkpoint is saved.
    """
    if config.runner == "ray":
        with cluster.connect(config.ray, console):
            from hssl_dist.jobs.finetune_ray import finetune_on_ray

            return finetune_on_ray(config, _run_here, console)
    return _run_here(config, console)


def _run_here(config: FinetuneConfig, console: Console) -> Outcome:
    with stop_requests() as stop_requested:
        return _tune(config, console, stop_requested)


def _tune(config: FinetuneConfig, console: Console, should_stop: Callable[[], bool]) -> Outcome:
    start_s = time.monotonic()
    device = use_hardware(config.threads)
    manifest = read_manifest(config.store.url, config.dataset)
    patients = choose_patients(config, manifest)
    start = starting_point(config, manifest.header)
    if (ignored := other_network(config, start)) is not None:
        console.warn(ignored)
    course, place = _trajectory(config, manifest, patients, start), files.join(config.runs, config.name)
    origin = lineage(content_hash(course), [manifest], start.parent_run, start.parent_model)
    params = config.model_dump(mode="json", exclude=_WHERE_NOT_WHAT)
    tags = {"hssl.job": "finetune", "hssl.dataset": config.dataset}
    begin = partial(start_run, config.tracking, config.name, params, tags, origin, None, console.warn, place)
    url = files.join(place, "model")
    wanted = Wanted(
        url, partial(_register_again, config, url, origin, begin), config.register_as, config.alias
    )
    done = read_done(config.tracking, place, config.name, course, wanted)
    if done is not None:
        return replace(done, warnings=(*_warnings(done.summary), *done.warnings))
    past = ancestry(config.store.url, manifest, patients.split, start, console.warn)
    saving = _saving(config, place, course, should_stop)
    console.say(_opening(config, patients, start, past))
    with begin() as tracked:
        tracked.log_history(saved_history(saving.store))  # what a killed process may not have sent
        tracked.log_json("config.json", params)
        tracked.log_json("patients.json", patients.as_json(config))
        if start.report is not None:
            tracked.log_json("transfer.json", {**asdict(start.report), "parts": start.report.parts})
        kept = device.type == "cpu" and config.training.acceleration.keep_freed_memory
        with within_memory("training", _smaller(config)), freed_memory_kept(kept):
            delivered = _train(config, manifest, patients, start, device, tracked, console, saving)
        _log_result(tracked, delivered)
        card = _card(config, manifest, patients, start, past, delivered, origin, tracked.id, device)
        name, state = config.register_as or f"hssl-{config.dataset}", delivered.result.state
        version = publish(tracked, url, state, card, name, config.alias)
        tracked.finish("done")  # before the run is noted as done: what is cut off is done again
        seconds = round(time.monotonic() - start_s, 1)
        outcome = _outcome(config, card, patients, start, delivered, name, version, url, seconds)
        write_done(place, course, outcome.summary)
    files.remove(saving.store.url)
    return replace(outcome, warnings=_warnings(outcome.summary))


def _register_again(
    config: FinetuneConfig, url: str, origin: Lineage, begin: Callable[[], Run], name: str
) -> tuple[str, Version | None]:
    """The finished run's model in the registry, which may have lost it, and the run with it."""
    with begin() as tracked:
        return tracked.id, register_safe(tracked, url, name, origin, config.alias)


def _trajectory(
    config: FinetuneConfig, manifest: Manifest, patients: Patients, start: Start
) -> dict[str, Any]:
    """All that determines the result: no run is resumed, or taken as done, as another one. Plain JSON."""
    part = config.model_dump(mode="json", exclude=_WHERE_NOT_WHAT | {"name", "checkpoint"})
    del part["training"]["log_every_steps"], part["training"]["acceleration"]
    if config.split.file is not None:
        part["split"]["file"] = content_hash(asdict(patients.split))  # what it says, wherever it lies
    part |= {"model": start.parent_model or config.model, "model_card": start.parent_card}
    return part | {
        "network": start.settings.model_dump(mode="json"),
        "manifest": manifest.sha256,
        "draws": DRAWS_VERSION,
    }


def _smaller(config: FinetuneConfig) -> str:
    """What to do where memory does not suffice."""
    size, patch = config.training.batch_size, " x ".join(map(str, config.training.patch_size))
    batch = f"training.batch_size to {size // 2} (it is {size}) or " if size > 1 else ""
    return f"lower {batch}training.patch_size (it is {patch})"


def _saving(
    config: FinetuneConfig, place: str, course: dict[str, Any], should_stop: Callable[[], bool]
) -> Saving:
    """How the run is saved. Raises ConfigError if what is saved there is of another one."""
    store = CheckpointStore(files.join(place, "checkpoints"))
    latest = store.latest()
    if latest is not None:
        check_same(config.name, store.load_state(latest)["trajectory"], course)
    return Saving(config.name, course, store, config.checkpoint, should_stop)


# --------------------------------------------------------------------------------------------------- training


def _opening(config: FinetuneConfig, patients: Patients, start: Start, past: Ancestry) -> str:
    split, seen = patients.split, past.test_pretrained_on
    told = f" ({len(seen)} of them pretrained on, without their labels)" if seen else ""
    origin = f"from {start.parent_model}: {start.report.summary}" if start.report else "from scratch"
    return (
        f"{config.dataset}: {len(patients.labelled)} of {len(split.train)} training patients "
        f"({len(patients.training_cases)} cases), {len(split.validation)} for validation, "
        f"{len(split.test)} for testing{told}; {origin}"
    )


@dataclass(frozen=True, slots=True)
class _Observer:
    """Passes what training tells on to the tracked run, the progress bar and the console."""

    tracked: Run
    advance: Callable[[int], None]
    warn: Callable[[str], None]

    def on_step(self, step: int) -> None:  # noqa: ARG002
        self.advance(1)

    def on_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self.tracked.log_metrics(step, metrics)

    def on_warning(self, step: int, text: str) -> None:  # noqa: ARG002
        self.warn(text)


def _train(
    config: FinetuneConfig,
    manifest: Manifest,
    patients: Patients,
    start: Start,
    device: torch.device,
    tracked: Run,
    console: Console,
    saving: Saving,
) -> Delivered:
    settings, classes = config.training, manifest.header.classes
    reader = open_reader(config.store.url, cache=config.cache, warn=console.warn)
    loader = SupervisedLoader(
        patients.training_cases,
        reader,
        settings.patch_size,
        settings.batch_size,
        settings.foreground,
        config.seed,
        pin_memory=device.type == "cuda",
    )
    validation = Validation(
        patients.validation_cases,
        reader,
        classes,
        settings.patch_size,
        settings.validation_overlap,
        device,
        ways(settings.keep_largest),
    )
    before = saving.store.latest() or 0
    if before:
        console.say(f"going on from the checkpoint of step {before}")
    with console.track(f"fine-tuning on {config.dataset}", settings.steps - before) as advance:
        result = run_supervised(
            start.network,
            loader,
            settings,
            classes,
            _Observer(tracked, advance, console.warn),
            device,
            validate=validation.means if patients.validation_cases else None,
            rates=start.rates,
            saving=saving,
            run_folder=files.join(config.runs, config.name),
        )
    return deliver(result, settings.keep_largest)


# --------------------------------------------------------------------------------------------- after training


def _log_result(tracked: Run, delivered: Delivered) -> None:
    """The best validation, and the curves of the loss and of validation Dice per class."""
    result = delivered.result
    tracked.log_history(result.history)
    if delivered.validation is not None:
        tracked.log_metrics(result.step, {"best_val_dice": delivered.validation.overall})
        tracked.log_json("keep_largest.json", {"chosen": delivered.keep_largest, **delivered.overall})
    for title, prefix in (("loss", "loss"), ("validation Dice", "val_dice")):
        series: dict[str, list[tuple[float, float]]] = {}
        for step, metrics in result.history:
            for key, value in metrics.items():
                if key.startswith(prefix):
                    series.setdefault(key.partition("/")[2] or "mean", []).append((step, value))
        if series:
            figure = line_chart(series, title=title, y_label=title)
            tracked.log_figure(f"figures/{prefix}.png", png(figure))


def _card(
    config: FinetuneConfig,
    manifest: Manifest,
    patients: Patients,
    start: Start,
    past: Ancestry,
    delivered: Delivered,
    origin: Lineage,
    run_id: str,
    device: torch.device,
) -> ModelCard:
    classes = manifest.header.classes
    metrics = {}
    if delivered.validation is not None:
        metrics = {f"val_dice/{classes[k]}": score for k, score in delivered.validation.per_class.items()}
        metrics["val_dice"] = delivered.validation.overall
    return ModelCard(
        kind="segmentation",
        network=start.settings.model_dump(mode="json"),
        in_channels=len(manifest.header.channels),
        classes=classes,
        dataset=config.dataset,
        recipe=manifest.header.recipe,
        modalities=manifest.header.channels,
        patch_size=config.training.patch_size,
        keep_largest=delivered.keep_largest,
        split=patients.as_json(config),
        pretrained_on=past.pretrained_on,
        labels_used=past.with_labels(config.dataset, patients.labelled),
        test_pretrained_on=past.test_pretrained_on,
        metrics={key: value for key, value in metrics.items() if not math.isnan(value)},
        lineage=origin,
        extra={
            "run_id": run_id,
            "seed": config.seed,
            "best_step": delivered.result.step,
            "precision": resolved(config.training.precision, device),
        },
    )


def _outcome(
    config: FinetuneConfig,
    card: ModelCard,
    patients: Patients,
    start: Start,
    delivered: Delivered,
    name: str,
    version: Version | None,
    url: str,
    seconds: float,
) -> Outcome:
    result = delivered.result
    named = {each: card.metrics.get(f"val_dice/{each}") for each in card.classes.values()}
    mean = card.metrics.get("val_dice")
    scores = ", ".join(f"{each} {'-' if score is None else f'{score:.3f}'}" for each, score in named.items())
    validated = "not validated" if mean is None else f"validation Dice {mean:.3f} ({scores})"
    return Outcome(
        summary={
            "dataset": config.dataset,
            "run_id": card.extra["run_id"],
            "model": None if version is None else version.uri,
            "name": name,
            "version": None if version is None else version.version,
            "path": url,
            "aliases": list(config.alias),
            "start": start.parent_model or config.model,
            "transfer": start.report.summary if start.report else None,
            "transfer_parts": start.report.parts if start.report else None,
            "fraction": config.labels.fraction,
            "patients": list(patients.labelled),
            "test_patients": len(patients.split.test),
            "test_pretrained_on": None if card.test_pretrained_on is None else len(card.test_pretrained_on),
            "nested_patients": {
                str(share): count
                for share, count in nested_sizes(patients.split.train, config.labels).items()
            },
            "val_dice": named,
            "val_dice_mean": mean,
            "val_dice_curve": [
                [step, metrics["val_dice"]] for step, metrics in result.history if "val_dice" in metrics
            ],
            "keep_largest": delivered.keep_largest,
            "precision": card.extra["precision"],
            "val_dice_by_way": delivered.overall,
            "best_step": result.step,
            "steps": result.steps,
            "seconds": seconds,
            "already_done": False,
        },
        lines=(
            f"{config.name if version is None else version.uri}: {validated}{delivered.told} "
            f"at step {result.step} of {result.steps}, {seconds:.0f} s",
            f"{f'{NOT_REGISTERED}: ' if version is None else 'also at '}{url}",
        ),
    )


def _warnings(summary: Mapping[str, Any]) -> tuple[str, ...]:
    blind = _NOT_VALIDATED if summary["val_dice_mean"] is None else None
    return tuple(warning for warning in (blind, leak_warning(summary)) if warning is not None)
