"""A pretraining under random faults, beside the same one left alone: both have to end with the same curve.

    python -m benchmarks.faults --json > benchmarks/results/faults.json

`hssl pretrain` on two workers of a Ray cluster: its volumes and checkpoints lie in a real S3 server behind a
proxy that fails requests, its metrics in a real MLflow server. A short run shows how many steps fit in the
time; then one is left alone, and one of the same config is struck: workers are killed, the driver gets
SIGTERM and is started again, the MLflow server is killed and started again, storage fails in several ways.
The faults' times are drawn from `--seed`, over `--minutes` of training, to which the recoveries come. Ends
with exit status 1, and a line that says why, if a checkpoint, a sample or a metric point was lost or doubled,
or any loss differs by a bit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import faults_figures as figures
from benchmarks.faults_figures import RECOVERY_BOUND_S, must_be_zero
from benchmarks.faults_job import Event, Job
from benchmarks.faults_plan import Fault, Kind, counts, plan
from benchmarks.faults_soak import Servers, Soak, Soaked, servers
from benchmarks.loader_data import write_volumes
from benchmarks.measuring import end_cleanly_when_asked, load_average, machine
from hssl_dist.config.network import NetworkConfig
from hssl_dist.config.parts import CacheConfig, RayConfig, StoreConfig
from hssl_dist.config.preprocess import StorageConfig
from hssl_dist.config.pretrain import CheckpointConfig, PretrainConfig, SamplingConfig, StageConfig
from hssl_dist.errors import CheckpointError
from hssl_dist.records import Shape
from hssl_dist.tracking.client import connect
from hssl_dist.training.checkpoint import CheckpointStore

Say = Callable[[str], None]

_BUCKET = "soak"
_TASKS = ("abdomen", "chest", "head")
_WORKERS = 2
_FIRST_STEPS = 60
_CHECKPOINTS = 40
_MOST_RESTARTS = 1000


@dataclass(frozen=True)
class Size:
    """What is trained: volumes of each of three tasks, a network, and for how many steps.

    Without `steps` as many as fit in the time in which faults strike, but not fewer than `fewest_steps`.
    """

    volumes: int = 4
    shape: Shape = (32, 96, 96)
    patch_size: Shape = (8, 32, 32)
    global_batch: int = 8
    fewest_steps: int = 60
    steps: int | None = None
    network: NetworkConfig = field(
        default_factory=lambda: NetworkConfig(
            widths=(8, 16),
            strides=((1, 1, 1), (1, 2, 2)),
            kernels=((1, 3, 3), (3, 3, 3)),
            encoder_blocks=(1, 1),
            decoder_blocks=(1,),
        )
    )

    @property
    def cache_bytes(self) -> int:
        """Room for half of the volumes: the others are read from storage in every step."""
        z, y, x = self.shape
        return len(_TASKS) * self.volumes * z * y * x * 2 // 2


@dataclass(frozen=True)
class Place:
    """Where the soak keeps what it makes, the servers it runs among, how long it waits for a line."""

    folder: Path
    around: Servers
    size: Size
    patience_s: float
    say: Say

    def config(self, name: str, steps: int, checkpoints: int = _CHECKPOINTS) -> PretrainConfig:
        """The run `name`: two thirds of its steps are the encoder stage's."""
        first = 2 * steps // 3
        size = self.size
        return PretrainConfig(
            name=name,
            global_batch=size.global_batch,
            log_every_steps=1,
            sampling=SamplingConfig(patch_size=size.patch_size, block_size=4),
            network=size.network,
            encoder=StageConfig(steps=first, warmup_steps=min(30, first // 4)),
            decoder=StageConfig(steps=steps - first, warmup_steps=5, encoder_rate=0.3),
            checkpoint=CheckpointConfig(every_steps=max(2, steps // checkpoints)),
            store=StoreConfig(url=f"s3://{_BUCKET}/store"),
            cache=CacheConfig(folder=str(self.folder / "cache"), max_bytes=size.cache_bytes, chunk_bytes=0),
            runs=f"s3://{_BUCKET}/runs",
            tracking=self.around.mlflow.tracking,
            register_as=name,
            ray=RayConfig(address=self.around.cluster.gcs),
            workers=(_WORKERS, _WORKERS),
            max_failures=_MOST_RESTARTS,
        )

    def log(self, name: str) -> Path:
        """Where a run's lines are kept."""
        return self.folder / f"{name}.log"

    def start(self, config: PretrainConfig, events: list[Event]) -> Job:
        """Submit a run; its storage is the proxy."""
        name = config.name
        path = self.folder / f"{name}.json"
        path.write_text(config.model_dump_json())
        around = self.around
        return Job(path, around.environment, self.log(name), events, around.cluster.pid)

    def undisturbed(self, config: PretrainConfig) -> Soaked:
        """A run that no fault strikes."""
        self.say(f"{config.name}: {config.encoder.steps + config.decoder.steps} steps")
        return self.struck(config, [])

    def struck(self, config: PretrainConfig, faults: list[Fault]) -> Soaked:
        """A run that faults strike."""
        events: list[Event] = []
        soak = Soak(
            lambda: self.start(config, events),
            events,
            self.around,
            faults,
            self.patience_s,
            self.say,
        )
        return soak.run()


# ------------------------------------------------------------------------------------------------ measuring


def measure(
    folder: Path, minutes: float, seed: int, size: Size, patience_s: float, say: Say
) -> dict[str, Any]:
    """The figures. Raises RuntimeError if a run cannot be brought to its end."""
    with _place(folder, size, patience_s, say) as place:
        seconds = 60.0 * minutes
        steps = size.steps or _fitting(place, seconds)
        alone = place.undisturbed(place.config("undisturbed", steps))
        seconds = min(seconds, steps * figures.step_seconds(alone.events))
        wanted = counts(seconds / 60.0)
        say(f"struck: {sum(wanted.values())} faults in {seconds:.0f} s of training")
        start_s = time.monotonic()
        struck = place.struck(place.config("struck", steps), plan(seed, seconds, wanted))
        took_s = time.monotonic() - start_s
        _sync(place)
        result = _figures(place, alone, struck, wanted)
    result |= {"minutes": round(seconds / 60.0, 2), "seed": seed, "took_s": round(took_s, 1)}
    result["must_be_zero"] = must_be_zero(result)
    result["passed"] = not any(result["must_be_zero"].values())
    return result


def _fitting(place: Place, seconds: float) -> int:
    """How many steps fit in so many seconds of training, by a short run of its own that saves only twice."""
    first = place.undisturbed(place.config("first", _FIRST_STEPS, checkpoints=2))
    return max(place.size.fewest_steps, round(seconds / figures.step_seconds(first.events)))


@contextlib.contextmanager
def _place(folder: Path, size: Size, patience_s: float, say: Say) -> Iterator[Place]:
    say("starting the servers, making the volumes")
    with servers(folder, 2 * _WORKERS) as around:
        local = folder / "store"
        for number, task in enumerate(_TASKS):
            storage = StorageConfig(chunk=(32, 48, 48), shard=(32, 96, 96))
            write_volumes(str(local), task, size.shape, size.volumes, 100 * number, storage)
        client = around.s3.client()
        client.create_bucket(Bucket=_BUCKET)
        for path in sorted(local.rglob("*")):
            if path.is_file():
                key = f"store/{path.relative_to(local)}"
                client.put_object(Bucket=_BUCKET, Key=key, Body=path.read_bytes())
        yield Place(folder, around, size, patience_s, say)


def _sync(place: Place) -> None:
    """`hssl sync`: what still waits for the tracking server is sent."""
    words = ["--runs", f"s3://{_BUCKET}/runs", "--tracking.uri", place.around.mlflow.url]
    done = subprocess.run(
        [sys.executable, "-m", "hssl_dist.sync", *words],
        capture_output=True,
        text=True,
        timeout=place.patience_s,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"hssl sync ended with exit status {done.returncode}: {done.stdout}{done.stderr}")


def _figures(place: Place, alone: Soaked, struck: Soaked, wanted: dict[Kind, int]) -> dict[str, Any]:
    kept, seen = _checkpoints("struck")
    _, expected = _checkpoints("undisturbed")
    recovered = figures.recoveries(struck.events)
    spread = figures.spreads(recovered)
    slowest_s = spread["total_s"]["largest"] if recovered else None
    startups = figures.startups([*alone.events, *struck.events])
    settings = place.config("struck", figures.work(alone.events)["steps"])
    return {
        "faults": {kind: struck.struck[kind] for kind in wanted},
        "requests_failed": dict(sorted(struck.requests.items())),
        "ends": {str(status): count for status, count in sorted(struck.ends.items())},
        "work": figures.work(struck.events),
        "checkpoints": {
            "every_steps": settings.checkpoint.every_steps,
            "saved": len({event.number for event in struck.events if event.what == "saved"}),
            "lost": figures.lost_checkpoints(struck.events, kept, settings.checkpoint.keep_last),
        },
        "recovery": {
            "measured": len(recovered),
            **spread,
            "bound_s": RECOVERY_BOUND_S,
            "within_bound": None if slowest_s is None else slowest_s <= RECOVERY_BOUND_S,
        },
        "startup": {"measured": len(startups), **figures.spreads(startups)},
        "step_ms": round(1e3 * figures.step_seconds(alone.events), 1),
        "samples": {
            "seen": seen["count"],
            "skipped_or_repeated": figures.misplaced_samples(expected, seen),
        },
        "metrics": figures.compare(_tracked(place, "undisturbed"), _tracked(place, "struck")),
    }


def _checkpoints(name: str) -> tuple[list[int], dict[str, Any]]:
    """The steps of a run's checkpoints that can be read, every hash of them, and what the newest says of its
    samples.
    """
    store = CheckpointStore(f"s3://{_BUCKET}/runs/{name}/checkpoints")
    readable: dict[int, dict[str, Any]] = {}
    for step in store.steps():
        with contextlib.suppress(CheckpointError):
            readable[step] = dict(store.load(step).state["samples"])
    if not readable:
        raise RuntimeError(f"there is no checkpoint at {store.url} that can be read")
    return sorted(readable), readable[max(readable)]


def _tracked(place: Place, name: str) -> dict[str, list[tuple[int, str]]]:
    """All that MLflow has of a run's metrics, entry by entry."""
    client = connect(place.around.mlflow.tracking)
    experiment = client.get_experiment_by_name(place.around.mlflow.tracking.experiment)
    runs = client.search_runs([experiment.experiment_id], f"tags.`hssl.run` = '{name}'")
    if len(runs) != 1:
        raise RuntimeError(f"MLflow has {len(runs)} runs of the name {name!r}, there is one")
    run = runs[0]
    return {
        key: [(entry.step, repr(entry.value)) for entry in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics
    }


# ---------------------------------------------------------------------------------------------- for people


def table(result: dict[str, Any]) -> str:
    """The figures for people."""
    recovery, startup, work, metrics = (result[key] for key in ("recovery", "startup", "work", "metrics"))
    lines = [
        ", ".join(f"{count} x {kind}" for kind, count in result["faults"].items())
        + f"; {sum(result['requests_failed'].values())} requests failed",
        f"{work['steps']} steps of {result['step_ms']:.0f} ms, {work['recomputed']} done again "
        f"({work['recomputed_share']:.1%}); a checkpoint every {result['checkpoints']['every_steps']}",
        *_seconds("from the kill of a worker to the first new step", recovery),
        *_seconds("from the start of the command to the first step", startup),
        f"{metrics['points']} metric points, {metrics['losses']} losses, {result['samples']['seen']} samples",
    ]
    if recovery["within_bound"] is not None:
        verdict = "reached" if recovery["within_bound"] else "missed"
        lines.append(f"recovered within {recovery['bound_s']:.0f} s: {verdict}")
    wrong = complaints(result)
    return "\n".join([*lines, *(wrong or ["nothing is lost, doubled or different"])])


def _seconds(title: str, part: dict[str, Any]) -> list[str]:
    if not part["measured"]:
        return [f"{title}: not measured"]
    parts = ", ".join(
        f"{key.removesuffix('_s')} {part[key]['median']:.1f}"
        for key in part
        if isinstance(part[key], dict) and key != "total_s"
    )
    total = part["total_s"]
    return [f"{title}: median {total['median']:.1f} s, at most {total['largest']:.1f} s (medians: {parts})"]


def complaints(result: dict[str, Any]) -> list[str]:
    """A line on each figure that is not 0 and has to be."""
    return [f"{count} {what}, which must be 0" for what, count in result["must_be_zero"].items() if count]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training, over which faults strike")
    parser.add_argument("--seed", type=int, default=0, help="of the faults and their times")
    parser.add_argument("--steps", type=int, help="of the run; as many as fit in the time if not given")
    parser.add_argument("--patience", type=float, default=300.0, help="longest silence of a run in seconds")
    parser.add_argument("--folder", type=Path, help="an empty folder in which all that is made is kept")
    flags = parser.parse_args()
    end_cleanly_when_asked()
    before, say = load_average(), lambda line: print(line, file=sys.stderr, flush=True)  # noqa: T201
    with contextlib.ExitStack() as stack:
        folder = flags.folder or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="hssl-benchmark-"))
        )
        try:
            size = Size(steps=flags.steps)
            result = measure(folder.absolute(), flags.minutes, flags.seed, size, flags.patience, say)
        except RuntimeError as error:
            sys.stderr.write(f"the soak could not be brought to its end: {error}\n")
            return 1
    result |= {"machine": machine(), "load_average": {"before": before, "after": load_average()}}
    sys.stdout.write((json.dumps(result, indent=2) if flags.json else table(result)) + "\n")
    for line in complaints(result):
        sys.stderr.write(f"{line}\n")
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
