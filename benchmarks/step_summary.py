"""From turns to figures, and what must be reached."""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.criteria import Criterion
from benchmarks.step_phases import OVERHEAD, PHASES

OVERHEAD_BOUND, CPU_SPEED_BOUND = 0.15, 1.3
CEILING_BOUND, WAIT_BOUND, GPU_SPEED_BOUND = 0.45, 0.02, 1.5
JUDGED = "lightly"
"""The peer's loop on the very same network; `plain` is another build of it, MONAI's are other networks."""

Arm = dict[str, Any]


def summarise(budget: dict[str, Any]) -> dict[str, Any]:
    """A budget's arms with their figures; the turns stay beside them."""
    ceilings = [
        max(turn["flops_per_s"] for turn in arm["turns"])
        for arm in budget["arms"]
        if arm["kind"] == "matmul" and arm.get("turns")
    ]
    ceiling = max(ceilings, default=None)
    counted = {
        (arm["stage"], arm["ranks"]): sum(arm["about"]["flops_per_step"].values())
        for arm in budget["arms"]
        if arm["kind"] == "ours" and arm.get("turns") and arm["about"]["flops_per_step"]
    }
    arms = [arm | {"figures": _figures(arm, ceiling, counted)} for arm in budget["arms"]]
    return budget | {"ceiling_flops_per_s": ceiling, "arms": arms}


def _figures(arm: Arm, ceiling: float | None, counted: dict[tuple[str, int], int]) -> dict[str, Any] | None:
    """Medians over the turns; shares of the sum of all turns. None for the ceiling and what cannot run."""
    if arm["kind"] == "matmul" or not arm.get("turns"):
        return None
    about, turns = arm["about"], arm["turns"]
    per_turn = [turn["steps"] * about["samples_per_step"] for turn in turns]
    rates = [samples / turn["wall_s"] for samples, turn in zip(per_turn, turns, strict=True)]
    z, y, x = about["patch"]
    figures: dict[str, Any] = {
        "samples_per_s": median(rates),
        "samples_per_s_of_turns": rates,
        "megavoxels_per_s": median(rates) * 2 * z * y * x / 1e6,
        "cpu_s_per_sample": median(t["cpu_s"] / n for n, t in zip(per_turn, turns, strict=True)),
        "memory_mib": max(turn["peak_mib"] for turn in turns),
        "with_workers_mib": max(turn["memory_mib"] for turn in turns),
        "shares": shares(turns),
    }
    if "gpu_mib" in turns[0]:
        figures["gpu_mib"] = max(turn["gpu_mib"] for turn in turns)
    flops = counted.get((arm["stage"], arm["ranks"])) if arm["kind"] == "ours" else None
    if flops:
        per_s = [flops * arm["ranks"] * turn["steps"] / turn["wall_s"] for turn in turns]
        figures["flops_per_s"] = median(per_s)
        figures["of_ceiling"] = median(per_s) / ceiling if ceiling else None
    if arm["threads"] == arm["ranks"] == 1 and arm["kind"] == "ours" and "gpu_mib" not in turns[0]:
        figures["overhead"] = overhead(turns)
    return figures


def shares(turns: list[dict[str, Any]]) -> dict[str, float]:
    """Each phase's share of the training thread's time."""
    whole = sum(sum(turn["phases"].values()) for turn in turns)
    return {name: sum(turn["phases"][name] for turn in turns) / whole for name in PHASES}


def overhead(turns: list[dict[str, Any]]) -> float:
    """Share of a step that is loader, augmentation, loss and bookkeeping, of a process with one thread.

    Of the training thread's time the phases that are overhead, waiting included; and all processor time of
    other threads, which is the loader's.
    """
    found = shares(turns)
    cpu_s, thread_s = (sum(turn[name] for turn in turns) for name in ("cpu_s", "thread_s"))
    background = max(0.0, 1.0 - thread_s / cpu_s)
    return 1.0 - (1.0 - sum(found[name] for name in OVERHEAD)) * (1.0 - background)


def speed_over(budget: dict[str, Any], *, any_settings: bool) -> tuple[float, str] | None:
    """Samples/s of our encoder stage over the fastest of the plain loops on the very same network: the median
    of the rounds' ratios, and the two arms' names. None if one of the two did not run.

    Ours is the fastest of those with the config's own settings, or of all.
    """
    encoder = [arm for arm in budget["arms"] if arm["kind"] == "ours" and arm["stage"] == "encoder"]
    ours = _fastest([arm for arm in encoder if any_settings or not arm["settings"]])
    peer = _fastest([arm for arm in budget["arms"] if arm["kind"] == JUDGED])
    if ours is None or peer is None:
        return None
    rates = (arm["figures"]["samples_per_s_of_turns"] for arm in (ours, peer))
    ratio = median(one / other for one, other in zip(*rates, strict=False))
    return ratio, f"{budget['budget']}: {ours['name']} over {peer['name']}"


def _fastest(arms: list[Arm]) -> Arm | None:
    ran = [arm for arm in arms if arm["figures"]]
    return max(ran, key=lambda arm: arm["figures"]["samples_per_s"], default=None)


def judge(budgets: list[dict[str, Any]], device: str, quick: bool) -> list[Criterion]:
    """Every requirement of the device; a quick run is not judged, for it is of no network that anyone has."""
    criteria = _of_gpu(budgets) if device == "cuda" else _of_cpu(budgets)
    return [
        Criterion(
            name,
            value,
            bound,
            at_least,
            None if quick else (value >= bound if at_least else value <= bound),
            note,
        )
        for name, value, bound, at_least, note in criteria
    ]


Found = list[tuple[str, float, float, bool, str]]


def _of_cpu(budgets: list[dict[str, Any]]) -> Found:
    found: Found = [
        (
            "loader, augmentation, loss and bookkeeping, share of a step",
            arm["figures"]["overhead"],
            OVERHEAD_BOUND,
            False,
            f"{budget['budget']}: {arm['name']}",
        )
        for budget in budgets
        for arm in budget["arms"]
        if arm["figures"] and "overhead" in arm["figures"]
    ]
    return found + _speeds(budgets, CPU_SPEED_BOUND)


def _of_gpu(budgets: list[dict[str, Any]]) -> Found:
    found: Found = []
    for budget in budgets:
        ours = [arm for arm in budget["arms"] if arm["kind"] == "ours" and arm["figures"]]
        for stage in ("encoder", "decoder"):
            arm = _fastest([arm for arm in ours if arm["stage"] == stage])
            if arm and arm["figures"].get("of_ceiling"):
                value = arm["figures"]["of_ceiling"]
                found.append(
                    (
                        f"achieved FLOP/s over the ceiling, {stage} stage",
                        value,
                        CEILING_BOUND,
                        True,
                        arm["name"],
                    )
                )
        found += [
            (
                "waiting for data, share of a step",
                arm["figures"]["shares"]["data"],
                WAIT_BOUND,
                False,
                arm["name"],
            )
            for arm in ours
        ]
    return found + _speeds(budgets, GPU_SPEED_BOUND)


def _speeds(budgets: list[dict[str, Any]], bound: float) -> Found:
    """With the config's own settings; and with the fastest, where those are others."""
    found: Found = []
    for budget in budgets:
        for any_settings in (False, True):
            known = speed_over(budget, any_settings=any_settings)
            if known is not None and (not found or found[-1][-1] != known[1]):
                name = "samples/s over the plain loop with lightly's loss"
                found.append((name + ", fastest settings" * any_settings, known[0], bound, True, known[1]))
    return found
