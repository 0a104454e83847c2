"""What the loss must reach, each as a number beside its bound."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.criteria import Criterion
from benchmarks.gradients import BOUNDS, MUST_FAIL
from benchmarks.loss_scaling import NUMBERS_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.gradients import GradientCheck
    from benchmarks.loss_scaling import Scaling, Wire
    from benchmarks.loss_share import LossShare

SIZE, LARGEST_SIZE = 32768, 65536


def judge(
    gradients: Sequence[GradientCheck], scalings: Sequence[Scaling], wires: Sequence[Wire], share: LossShare
) -> list[Criterion]:
    """Every requirement, also those a quick run cannot judge."""
    wire_excess = max(w.received_bytes / w.bound_bytes for w in wires if w.implementation == "ours")
    return [
        *(_exactness(gradients, dtype) for dtype in BOUNDS),
        *(_negative_control(gradients, name) for name in MUST_FAIL),
        *_sizes({(scaling.implementation, scaling.rows): scaling for scaling in scalings}),
        _criterion(f"bytes received over all-gather + 4 M + {NUMBERS_BYTES} W", wire_excess, 1.0),
        _criterion(f"share of a pretraining step's processor time at M = {share.rows}", share.share, 0.05),
    ]


def _criterion(
    name: str, value: float | None, bound: float, at_least: bool = False, note: str = ""
) -> Criterion:
    passed = None if value is None else (value >= bound if at_least else value <= bound)
    return Criterion(name, value, bound, at_least, passed, note)


def _exactness(gradients: Sequence[GradientCheck], dtype: str) -> Criterion:
    ours = [check for check in gradients if check.implementation == "ours" and check.dtype == dtype]
    worlds = sorted({len(check.split) for check in ours})
    errors = [
        error
        for check in ours
        for error in (check.weight_error, check.temperature_error)
        if error is not None
    ]
    name = (
        f"gradient error in {dtype}, equal and ragged, with and without micro-batches, temperature included"
    )
    return _criterion(name, max(errors), BOUNDS[dtype], note=f"W = {', '.join(map(str, worlds))}")


def _negative_control(gradients: Sequence[GradientCheck], name: str) -> Criterion:
    """The check must be able to fail: a gradient that is known to be wrong has at least 1 % error."""
    errors = [
        check.weight_error
        for check in gradients
        if check.implementation == name and len(check.split) > 1 and check.weight_error is not None
    ]
    title = f"gradient error of {name}, which must fail the check, W >= 2"
    return _criterion(title, min(errors, default=None), 0.01, at_least=True)


def _sizes(scalings: dict[tuple[str, int], Scaling]) -> list[Criterion]:
    ours, largest = scalings.get(("ours", SIZE)), scalings.get(("ours", LARGEST_SIZE))
    lightly, open_clip = scalings.get(("lightly", SIZE)), scalings.get(("open_clip", SIZE))

    def ratio(value: Callable[[Scaling], float | None], peer: Scaling | None) -> float | None:
        if ours is None or peer is None:
            return None
        own, other = value(ours), value(peer)
        return own / other if own is not None and other else None

    return [
        _criterion(
            f"memory growth over lightly's at M = {SIZE}",
            ratio(lambda s: s.known_growth_mib, lightly),
            1 / 60,
            note=_note(lightly),
        ),
        _criterion(
            f"memory growth over open_clip's at M = {SIZE}",
            ratio(lambda s: s.known_growth_mib, open_clip),
            1 / 15,
            note=_note(open_clip),
        ),
        _criterion(
            f"memory growth at M = {LARGEST_SIZE}, MiB",
            largest.growth_mib if largest else None,
            300,
            note=_alone(scalings),
        ),
        _criterion(
            f"processor time over lightly's at M = {SIZE}",
            ratio(lambda s: s.known_cpu_s, lightly),
            0.5,
            note=_note(lightly),
        ),
        _criterion(
            f"processor time per pair over open_clip's at M = {SIZE}",
            ratio(lambda s: s.known_cpu_s and s.known_cpu_s / s.pairs, open_clip),
            1.0,
            note=_note(open_clip),
        ),
    ]


def _note(peer: Scaling | None) -> str:
    """Says so where the peer's figure is a prediction."""
    if peer is None or peer.cannot_run is None:
        return ""
    return f"{peer.implementation} predicted from the size before: {peer.cannot_run}"


def _alone(scalings: dict[tuple[str, int], Scaling]) -> str:
    blocked = [s for s in scalings.values() if s.rows == LARGEST_SIZE and s.cannot_run]
    return "; ".join(f"{s.implementation} cannot run: {s.cannot_run}" for s in blocked)
