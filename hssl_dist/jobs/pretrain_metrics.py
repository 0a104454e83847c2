"""What Prometheus hears of a pretraining on Ray, at the metrics endpoints of its nodes; see docs/deploy.md.

Ray puts `ray_` before the names, and labels of its own (node, process) beside ours. It forgets a gauge that
nobody has set for 20 seconds, so what holds is set anew every few seconds; what is of an earlier step or of a
process that has ended goes by itself. A counter stays as long as the node does. Nothing here stops training:
what cannot be exported is told once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from ray.util.metrics import Counter, Gauge

from hssl_dist.errors import Interrupted, NonFiniteError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_REFRESH_S = 5.0
_TERM = "loss_"

Values = Mapping[tuple[str, str], float]
"""Numbers by gauge and by the value of the label that it has beside the run's, "" if it has none."""


@dataclass(frozen=True)
class Exported:
    """A gauge or counter: what it tells, and the label that it has beside `run`."""

    description: str
    label: str = ""


EXPORTED = {
    "step": Exported("Optimiser steps done at the newest logged step"),
    "planned_steps": Exported("Optimiser steps of the whole run"),
    "last_step_timestamp_seconds": Exported("When a step was last logged; before, when the run started"),
    "workers": Exported("Workers that train"),
    "worker_starts": Exported("Times that all workers were started: 1, and 1 for each failure or resizing"),
    "loss": Exported("Loss of the newest logged step"),
    "loss_term": Exported("Terms of that loss", "term"),
    "gradient_norm": Exported("Norm of its gradient before clipping"),
    "learning_rate": Exported("Its learning rate"),
    "samples_per_second": Exported("Samples of all workers per second, since the logged step before"),
    "data_wait_ratio": Exported("Share of that time that rank 0 waited for data, 0 to 1"),
    "cache_hit_ratio": Exported("Share of rank 0's regions that were in its node's cache, 0 to 1"),
    "embedding_std": Exported("Spread of the embeddings: 1 evenly, 0 collapsed"),
    "effective_rank": Exported("Effective rank of the embeddings; 1 collapsed"),
    "image_over_chance": Exported("Image loss over that of embeddings that tell nothing"),
    "checkpoint_timestamp_seconds": Exported(
        "When the state was taken that the newest checkpoint holds; before one, when training started"
    ),
    "checkpoint_write_seconds": Exported("How long the newest checkpoint took to write"),
    "gpu_memory_bytes": Exported("What a rank's process has reserved of its GPU's memory", "rank"),
    "ends_total": Exported("Trainings that ended: done, interrupted, not_finite, failed", "how"),
}
"""All that is exported, by its name after `hssl_pretrain_`."""

_LOGGED = {
    "loss": "loss",
    "gradient_norm": "gradient_norm",
    "learning_rate": "learning_rate",
    "samples_per_s": "samples_per_second",
    "data_wait_share": "data_wait_ratio",
    "cache_hit_share": "cache_hit_ratio",
    "embedding_std": "embedding_std",
    "effective_rank": "effective_rank",
    "image_over_chance": "image_over_chance",
}
"""The gauges of a logged step's metrics; its `loss_<term>` are the terms of `loss_term`."""


class Exporter:
    """Sets a run's gauges to what `values` says, when told to and every `refresh_s` seconds until `end`.

    `make` makes a gauge of Ray's, or of what stands for it. `warn` hears why there are no gauges any more.
    """

    def __init__(
        self,
        run: str,
        values: Callable[[], Values],
        warn: Callable[[str], None],
        *,
        make: Callable[..., Any] = Gauge,
        refresh_s: float = _REFRESH_S,
    ) -> None:
        self._run, self._values, self._warn = run, values, warn
        self._make, self._refresh_s = make, refresh_s
        self._gauges: dict[str, Any] = {}
        self._lock, self._over = threading.Lock(), threading.Event()
        threading.Thread(target=self._refresh, name="metrics-export", daemon=True).start()

    def export(self) -> None:
        """Set them now; never raises."""
        with self._lock:
            if self._over.is_set():
                return
            try:
                for (name, value), number in self._values().items():
                    label = EXPORTED[name].label
                    tags = {"run": self._run} | ({label: value} if label else {})
                    self._gauge(name).set(number, tags=tags)
            except Exception as error:  # noqa: BLE001  (whatever it is: training matters more)
                self._over.set()
                self._warn(f"Prometheus hears no more of this run ({_why(error)}); training goes on")

    def end(self) -> None:
        """Set them no more."""
        self._over.set()

    def _gauge(self, name: str) -> Any:
        if name not in self._gauges:
            self._gauges[name] = _made(self._make, name)
        return self._gauges[name]

    def _refresh(self) -> None:
        while not self._over.wait(self._refresh_s):
            self.export()


class RunMetrics:
    """What a run's rank 0 tells, as gauges."""

    def __init__(
        self,
        run: str,
        planned_steps: int,
        warn: Callable[[str], None],
        *,
        make: Callable[..., Any] = Gauge,
        now: Callable[[], float] = time.time,
        refresh_s: float = _REFRESH_S,
    ) -> None:
        self._now, self._starts = now, 0
        self._logged: Values = {}
        self._held: Values = {
            ("planned_steps", ""): planned_steps,
            ("last_step_timestamp_seconds", ""): now(),
        }
        self._exporter = Exporter(
            run, lambda: {**self._held, **self._logged}, warn, make=make, refresh_s=refresh_s
        )

    def started(self, workers: int) -> None:
        """So many workers begin to train, or begin again."""
        self._starts += 1
        own = {("workers", ""): float(workers), ("worker_starts", ""): float(self._starts)}
        self._held = {("checkpoint_timestamp_seconds", ""): self._now(), **self._held, **own}
        self._exporter.export()

    def logged(self, step: int, metrics: Mapping[str, float]) -> None:
        """A step is logged; what it does not have is not exported any more."""
        logged = {(_LOGGED[key], ""): value for key, value in metrics.items() if key in _LOGGED}
        terms = {
            ("loss_term", key.removeprefix(_TERM)): value
            for key, value in metrics.items()
            if key.startswith(_TERM)
        }
        self._logged = {**logged, **terms, ("step", ""): float(step)}
        self._held = {**self._held, ("last_step_timestamp_seconds", ""): self._now()}
        self._exporter.export()

    def saved(self, seconds: float) -> None:
        """A checkpoint is committed, after so many seconds."""
        own = {
            ("checkpoint_timestamp_seconds", ""): self._now() - seconds,
            ("checkpoint_write_seconds", ""): seconds,
        }
        self._held = {**self._held, **own}
        self._exporter.export()


@contextmanager
def memory_exported(run: str, rank: int, device: torch.device, warn: Callable[[str], None]) -> Iterator[None]:
    """Inside, this process exports what it takes of its GPU's memory, if it has one."""
    if device.type != "cuda":
        yield
        return
    exporter = Exporter(
        run, lambda: {("gpu_memory_bytes", str(rank)): float(torch.cuda.memory_reserved(device))}, warn
    )
    try:
        yield
    finally:
        exporter.end()


@contextmanager
def end_counted(
    run: str, warn: Callable[[str], None], *, make: Callable[..., Any] = Counter
) -> Iterator[None]:
    """Inside, a run trains; how it ends is counted. Ray sends that on when this process leaves it, too."""
    how = "failed"
    try:
        yield
        how = "done"
    except Interrupted:
        how = "interrupted"
        raise
    except NonFiniteError:
        how = "not_finite"
        raise
    finally:
        try:
            _made(make, "ends_total").inc(1, tags={"run": run, "how": how})
        except Exception as error:  # noqa: BLE001  (whatever it is: how training ended matters more)
            warn(f"Prometheus does not hear how this run ended ({_why(error)})")


def _made(make: Callable[..., Any], name: str) -> Any:
    """The gauge or counter of that name; Ray itself puts `_total` behind a counter's."""
    exported = EXPORTED[name]
    return make(
        f"hssl_pretrain_{name.removesuffix('_total')}",
        description=exported.description,
        tag_keys=("run", exported.label) if exported.label else ("run",),
    )


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
