"""The benchmark of a step: from turns to figures, verdicts, tables and the page."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.step_phases import OVERHEAD, PHASES
from benchmarks.step_summary import judge, overhead, shares, speed_over, summarise
from benchmarks.step_table import PAGE, RECORDS, page_with, read, section, tables


def turn(wall_s: float, *, cpu_s: float | None = None, **phases: float) -> dict[str, Any]:
    spent = dict.fromkeys(PHASES, 0.0) | phases
    spent["backward"] += wall_s - sum(spent.values())
    return {
        "steps": 2,
        "wall_s": wall_s,
        "thread_s": wall_s,
        "cpu_s": wall_s if cpu_s is None else cpu_s,
        "phases": spent,
        "peak_mib": 100.0,
        "memory_mib": 90.0,
    }


def arm(name: str, kind: str, turns: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    about = {"samples_per_step": 4, "patch": [2, 5, 10], "precision": "float32"}
    about["flops_per_step"] = {"mm": 6 * 10**9} if kind == "ours" else {}
    known = {"stage": "encoder", "threads": 1, "ranks": 1, "workers": 0, "options": {}, "settings": {}}
    return {"name": name, "kind": kind, **known, "about": about, "turns": turns} | changes


def budget(*arms: dict[str, Any]) -> dict[str, Any]:
    ceiling = arm("matrix products", "matmul", [{"flops_per_s": 5e9}, {"flops_per_s": 8e9}])
    return summarise({"budget": "1 core", "arms": [ceiling, *arms]})


def test_overhead_is_what_is_no_network_and_what_other_threads_do() -> None:
    turns = [turn(1.0, data=0.02, augmentation=0.05, loss=0.01, bookkeeping=0.02, cpu_s=1.25)]
    assert sum(shares(turns)[name] for name in OVERHEAD) == pytest.approx(0.1)
    assert overhead(turns) == pytest.approx(1 - 0.9 * 0.8)  # of 1.25 s of processor time 1 s is the thread's


def test_figures_are_medians_over_turns() -> None:
    found = budget(arm("ours", "ours", [turn(1.0), turn(2.0), turn(4.0)]))
    figures = found["arms"][1]["figures"]
    assert found["ceiling_flops_per_s"] == 8e9
    assert figures["samples_per_s"] == 2 * 4 / 2.0
    assert figures["megavoxels_per_s"] == pytest.approx(4.0 * 2 * 100 / 1e6)
    assert figures["flops_per_s"] == 6e9
    assert figures["of_ceiling"] == 0.75


def test_the_ratio_is_of_rounds_and_of_the_fastest_on_the_same_network() -> None:
    found = budget(
        arm("ours", "ours", [turn(1.0), turn(1.0), turn(10.0)]),
        arm("ours, compiled", "ours", [turn(0.8)] * 3, settings={"compile": True}),
        arm("loop", "lightly", [turn(1.4), turn(1.5), turn(15.0)]),
        arm("loop, 1 worker", "lightly", [turn(2.0)] * 3),
        arm("plain modules", "plain", [turn(0.1)] * 3),
    )
    ratio, note = speed_over(found, any_settings=False)
    assert (ratio, note) == (pytest.approx(1.5), "1 core: ours over loop")
    assert speed_over(found, any_settings=True)[1] == "1 core: ours, compiled over loop"
    assert speed_over(budget(arm("ours", "ours", [turn(1.0)])), any_settings=False) is None


def test_cpu_criteria_are_those_of_the_requirements() -> None:
    slow = arm("ours", "ours", [turn(1.0, augmentation=0.2)])
    found = judge([budget(slow, arm("loop", "lightly", [turn(1.2)]))], "cpu", quick=False)
    assert [(c.bound, c.at_least, c.passed) for c in found] == [(0.15, False, False), (1.3, True, False)]
    fast = arm("ours", "ours", [turn(1.0, augmentation=0.1)])
    found = judge([budget(fast, arm("loop", "lightly", [turn(1.31)]))], "cpu", quick=False)
    assert [c.passed for c in found] == [True, True]
    assert {c.passed for c in judge([budget(fast)], "cpu", quick=True)} == {None}


def test_gpu_criteria_are_those_of_the_requirements() -> None:
    arms = [
        arm("ours", "ours", [turn(2.0, data=0.1) | {"gpu_mib": 5.0}]),
        arm("ours, decoder", "ours", [turn(5.0) | {"gpu_mib": 5.0}], stage="decoder"),
        arm("loop", "lightly", [turn(2.9) | {"gpu_mib": 5.0}]),
    ]
    found = {(c.name, c.note): c for c in judge([budget(*arms)], "cuda", quick=False)}
    by_bound = {c.bound: [] for c in found.values()}
    for criterion in found.values():
        by_bound[criterion.bound].append((pytest.approx(criterion.value), criterion.passed))
    assert by_bound[0.45] == [(0.75, True), (0.3, False)]
    assert by_bound[0.02] == [(0.05, False), (0.0, True)]
    assert by_bound[1.5] == [(1.45, False)]


def record() -> dict[str, Any]:
    found = budget(
        arm("ours", "ours", [turn(1.0)]),
        arm("SwinUNETR", "swinunetr", [], cannot_run="No module named 'einops'"),
    )
    return {
        "command": "python -m benchmarks.step --json",
        "started": "2026-01-01T00:00:00+00:00",
        "minutes": 1.0,
        "code": "0",
        "peers": {},
        "machine": {"gpu": "a GPU", "python": "3", "torch": "2"},
        "load_average": {"before": [0, 0, 0], "after": [0, 0, 0]},
        "settings": {"rounds": 1, "turn_s": 1.0},
        "budgets": [found],
        "criteria": [vars(c) for c in judge([found], "cpu", quick=False)],
    }


def test_tables_have_every_arm_also_what_cannot_run() -> None:
    shown = tables(record())
    assert "| ours | 2 x 5 x 10 | 4 | 8 (8-8) |" in shown
    assert "| SwinUNETR | cannot run: No module named 'einops' |" in shown
    assert "matrix products 8 GFLOP/s" in shown


def test_the_page_shows_the_records_and_says_which_are_missing() -> None:
    page = PAGE.read_text()
    assert page == page_with(page, {name: read(path) for name, path in RECORDS.items()})
    assert "there is no record yet. `bash benchmarks/gpu.sh` makes one" in section("GPU", None)
    for path in RECORDS.values():
        found = read(path)
        assert found is None or not found["settings"]["quick"]
