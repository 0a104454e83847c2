"""What runs have logged, read back for reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hssl_dist.tracking.client import connect, known_run, refusals

if TYPE_CHECKING:
    from hssl_dist.config.parts import TrackingConfig


def metric_history(config: TrackingConfig, run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Every metric of a run as `(step, value)` in order of steps; of a step logged twice, the last value.

    Raises MissingError if the server does not know the run, and TrackingError if it cannot be reached.
    """
    client = connect(config)
    with refusals(config, f"reading the metrics of the run {run_id!r}"):
        history: dict[str, list[tuple[int, float]]] = {}
        run = known_run(client, config, run_id)
        for name in sorted(run.data.metrics):
            entries = sorted(
                client.get_metric_history(run.info.run_id, name), key=lambda entry: entry.timestamp
            )
            history[name] = sorted({int(entry.step): float(entry.value) for entry in entries}.items())
    return history
