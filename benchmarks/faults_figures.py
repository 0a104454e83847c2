"""What a soak comes to: what was lost and how long it took, and whether anything differs. Plain functions."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.faults_job import Event

Figures = dict[str, Any]
Entries = Mapping[str, Sequence[tuple[int, str]]]
"""All entries of a tracked run by metric: step and value, as text that tells every bit of it."""

RECOVERY_BOUND_S = 30.0
"""From the kill of a worker to the first new step, on two quiet cores."""

_TIMING = ("samples_per_s", "data_wait_share")
"""Metrics of every logged step that tell how fast it went."""
_READING = ("cache_hit_share", "bytes_fetched_per_byte_used", "requests_per_region")
"""Those that are left out of a step for which nothing was read."""


# ---------------------------------------------------------------------------------------------- of the lines


def recoveries(events: Sequence[Event]) -> list[dict[str, float]]:
    """Seconds from each kill of a worker to the first new step, and of these until the new workers trained.

    A fault of another kind that stopped the run before that step leaves a kill out; so does a SIGTERM, which
    is followed by the end of the attempt.
    """
    found = []
    for number, struck in enumerate(events):
        if struck.what != "struck":
            continue
        workers: Event | None = None
        for event in events[number + 1 :]:
            if event.what in ("struck", "ended"):
                break
            if event.what == "workers":
                workers = workers or event
            elif event.what == "step" and workers is not None:
                total_s, restart_s = event.at_s - struck.at_s, workers.at_s - struck.at_s
                found.append({"total_s": total_s, "workers_s": restart_s, "step_s": total_s - restart_s})
                break
    return found


def startups(events: Sequence[Event]) -> list[dict[str, float]]:
    """Seconds that the attempts took from their start to their first step, and to what came before it."""
    found = []
    for number, started in enumerate(events):
        if started.what != "started":
            continue
        first: dict[str, float] = {}
        for event in events[number + 1 :]:
            if event.what in ("started", "struck", "ended"):
                break
            if event.what not in first:
                first[event.what] = event.at_s - started.at_s
            if event.what == "step":
                break
        if {"cluster", "workers", "step"} <= first.keys():
            found.append(
                {
                    "total_s": first["step"],
                    "cluster_s": first["cluster"],
                    "workers_s": first["workers"] - first["cluster"],
                    "step_s": first["step"] - first["workers"],
                }
            )
    return found


def step_seconds(events: Sequence[Event]) -> float:
    """The mean time from one step to the next of an undisturbed run, of two steps or more.

    Not the median: lines of workers arrive several at once.
    """
    at_s = [event.at_s for event in events if event.what == "step"]
    return (at_s[-1] - at_s[0]) / (len(at_s) - 1)


def work(events: Sequence[Event]) -> Figures:
    """Steps done, and how many of them had been done before."""
    steps = Counter(event.number for event in events if event.what == "step")
    return {
        "steps": len(steps),
        "recomputed": steps.total() - len(steps),
        "recomputed_share": (steps.total() - len(steps)) / len(steps),
    }


def lost_checkpoints(events: Sequence[Event], kept: Sequence[int], keep_last: int) -> list[int]:
    """Steps of checkpoints that were saved, by the job's own word, and are not there when they are needed.

    Workers that start have to go on from the newest one, and of the last `keep_last` of the run all have to
    be among those `kept` in its folder.
    """
    saved: set[int] = set()
    lost: set[int] = set()
    resumed: int | None = None
    starting = False
    for event in events:
        if event.what == "saved":
            saved.add(event.number)
        elif event.what == "workers":
            starting, resumed = True, None
        elif event.what == "resumed":
            resumed = event.number
        if starting and event.what in ("resumed", "step"):
            starting = False
            lost |= {step for step in saved if step > (resumed or 0)}
    return sorted(lost | (set(sorted(saved)[-keep_last:]) - set(kept)))


def spread(values: Sequence[float]) -> Figures:
    """Median, smallest and largest, in tenths; None of nothing."""
    if not values:
        return {"median": None, "smallest": None, "largest": None}
    return {
        "median": round(statistics.median(values), 1),
        "smallest": round(min(values), 1),
        "largest": round(max(values), 1),
    }


def spreads(rows: Sequence[Mapping[str, float]]) -> Figures:
    """The spread of each part of some recoveries or start-ups."""
    return {key: spread([row[key] for row in rows]) for key in (rows[0] if rows else {})}


# ------------------------------------------------------------------------------------- of what was tracked


def compare(undisturbed: Entries, disturbed: Entries) -> Figures:
    """Entries of a disturbed run that are missing, there again, or of no step of the undisturbed one; and
    those whose value differs by any bit, which only counts what does not tell how fast it went.

    `losses` are `loss` and its terms, `others` the remaining metrics.
    """
    figures = Counter(
        dict.fromkeys(
            (
                "points",
                "missing",
                "doubled",
                "unexpected",
                "losses",
                "losses_differ",
                "others",
                "others_differ",
            ),
            0,
        )
    )
    for key in sorted((undisturbed.keys() | disturbed.keys()) - set(_READING)):
        expected, found = undisturbed.get(key, ()), disturbed.get(key, ())
        steps, again = {step for step, _ in expected}, Counter(step for step, _ in found)
        figures["points"] += len(steps)
        figures["missing"] += len(steps - again.keys())
        figures["doubled"] += again.total() - len(again)
        figures["unexpected"] += len(again.keys() - steps)
        if key in _TIMING:
            continue
        kind = "losses" if key == "loss" or key.startswith("loss_") else "others"
        values = dict(expected)
        both = [(step, value) for step, value in found if step in values]
        figures[kind] += len({step for step, _ in both})
        figures[f"{kind}_differ"] += len({step for step, value in both if value != values[step]})
    return dict(figures)


def misplaced_samples(undisturbed: Mapping[str, Any], disturbed: Mapping[str, Any]) -> int:
    """Samples skipped or repeated, from what the final checkpoints say of those that made their weights.

    The difference of their counts; 1 if these are equal and the samples are not.
    """
    if undisturbed["digest"] is None or disturbed["digest"] is None:
        raise ValueError("a checkpoint does not say which samples it was made of")
    apart = abs(undisturbed["count"] - disturbed["count"])
    return apart or int(undisturbed["digest"] != disturbed["digest"])


# ------------------------------------------------------------------------------------------------- verdicts


def must_be_zero(result: Figures) -> dict[str, int]:
    """The figures that a correct run leaves at 0, by what they count."""
    metrics = result["metrics"]
    return {
        "checkpoints lost": len(result["checkpoints"]["lost"]),
        "samples skipped or repeated": result["samples"]["skipped_or_repeated"],
        "metric points missing in MLflow": metrics["missing"],
        "metric points doubled in MLflow": metrics["doubled"],
        "metric points of no step of the run": metrics["unexpected"],
        "losses that differ": metrics["losses_differ"],
        "other metrics that differ": metrics["others_differ"],
    }
