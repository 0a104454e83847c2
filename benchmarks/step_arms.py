"""Which arms a run of the step's benchmark has: by budget of processor cores, or on a GPU."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchmarks.step_turns import ArmSpec

if TYPE_CHECKING:
    from hssl_dist.config.pretrain import PretrainConfig

MONAI_BATCH = {"cpu": 4, "cuda": 4}
SWIN_PATCH = {"cpu": (32, 64, 64), "cuda": (32, 128, 128)}
"""It reduces by 32 on each axis and needs more than a voxel of the rest."""
SWIN_FEATURES = 24


def budgets(
    config: PretrainConfig, folder: str, device: str, *, quick: bool, turn_s: float
) -> dict[str, list[ArmSpec]]:
    """Arms that run in turns, by what they may use."""
    if device == "cuda":
        return {"one GPU": _on_gpu(config, folder, quick=quick, turn_s=turn_s)}
    cores = tuple(sorted(os.sched_getaffinity(0)))
    base = ArmSpec("", "", folder, config.model_dump(mode="json"), turn_s=turn_s)
    found = _on_one_core(replace(base, cores=cores[-1:]), quick=quick)
    if len(cores) > 1 and not quick:
        found[f"{len(cores)} cores"] = _on_all_cores(replace(base, cores=cores), len(cores))
    return found


def _on_one_core(base: ArmSpec, *, quick: bool) -> dict[str, list[ArmSpec]]:
    """In three parts, for what waits for its turn keeps its memory: all at once do not fit into 24 GB."""
    ceiling = _ceiling(base, "float32", quick=quick)
    encoder = replace(base, name="ours, encoder stage", kind="ours")
    decoder = replace(base, name="ours, decoder stage", kind="ours", stage="decoder")
    loop = replace(base, name="lightly's loop", kind="lightly")
    if quick:
        return {"1 core": [ceiling, encoder, decoder, loop]}
    settings = {
        "channels last": _with(encoder, channels_last=True),
        "compiled": _with(encoder, compile=True),
        "freed memory given back": _with(encoder, keep_freed_memory=False),
    }
    return {
        "1 core": [
            ceiling,
            encoder,
            loop,
            replace(loop, name="lightly's loop, 1 worker", workers=1),
            replace(loop, name="lightly's loop, plain modules", kind="plain"),
        ],
        "1 core, other settings": [
            ceiling,
            encoder,
            *(replace(spec, name=f"{spec.name}, {name}") for name, spec in settings.items()),
        ],
        "1 core, other work": [ceiling, decoder, *_monai(base)],
    }


def _with(base: ArmSpec, **settings: bool) -> ArmSpec:
    """The same with some of `acceleration` otherwise than by default."""
    acceleration = base.config["acceleration"] | settings
    return replace(base, config=base.config | {"acceleration": acceleration}, settings=settings)


def _on_all_cores(base: ArmSpec, cores: int) -> list[ArmSpec]:
    threaded = replace(base, threads=cores)
    return [
        _ceiling(threaded, "float32", quick=False),
        replace(threaded, name=f"ours, {cores} threads", kind="ours"),
        replace(base, name=f"ours, {cores} ranks", kind="ours", ranks=cores),
        replace(threaded, name=f"lightly's loop, {cores} threads", kind="lightly"),
        replace(threaded, name=f"lightly's loop, {cores} threads, 1 worker", kind="lightly", workers=1),
        replace(
            base, name=f"lightly's loop, 1 thread, workers {cores - 1}", kind="lightly", workers=cores - 1
        ),
    ]


def _on_gpu(config: PretrainConfig, folder: str, *, quick: bool, turn_s: float) -> list[ArmSpec]:
    workers = max(1, len(os.sched_getaffinity(0)) - 2)
    known = config.model_dump(mode="json")
    base = ArmSpec("", "", folder, known, device="cuda", workers=workers, turn_s=turn_s)
    compiled = _with(base, compile=True)
    arms = [
        _ceiling(base, "bfloat16", quick=quick),
        replace(base, name="ours, encoder stage", kind="ours"),
        replace(base, name="ours, decoder stage", kind="ours", stage="decoder"),
        replace(base, name=f"lightly's loop, {workers} workers", kind="lightly"),
    ]
    if quick:
        return arms
    return [
        *arms,
        replace(compiled, name="ours, encoder stage, compiled", kind="ours"),
        replace(compiled, name="ours, decoder stage, compiled", kind="ours", stage="decoder"),
        replace(_with(base, channels_last=True), name="ours, encoder stage, channels last", kind="ours"),
        replace(base, name=f"lightly's loop, plain modules, {workers} workers", kind="plain"),
        *_monai(base),
    ]


def _ceiling(base: ArmSpec, precision: str, *, quick: bool) -> ArmSpec:
    options: dict[str, Any] = {"precision": precision}
    if quick:
        options["sides"] = (256,)
    return replace(base, name="matrix products", kind="matmul", options=options)


def _monai(base: ArmSpec) -> list[ArmSpec]:
    options: dict[str, Any] = {"batch": MONAI_BATCH[base.device]}
    swin = options | {"patch": SWIN_PATCH[base.device], "feature_size": SWIN_FEATURES}
    return [
        replace(base, name="MONAI's recipe, SegResNet", kind="segresnet", options=options),
        replace(base, name="MONAI's recipe, SwinUNETR", kind="swinunetr", options=swin),
    ]
