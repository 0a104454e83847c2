"""The losses of other projects, imported from their own installed distributions.

`make setup` installs lightly, open_clip_torch and pytorch-metric-learning at the versions of constraints.txt
with `--no-deps` (2 MB of pure Python; tqdm comes along for the last). Their dependencies (torchvision, timm,
hydra and more) are left out: no loss needs them, and a torchvision built for another torch does not import.
But the packages' `__init__` modules import them all. So a peer's packages are entered here without running
their `__init__`, and only the module that defines the loss, with what it imports itself, is executed, from
the installed files as they are. One name remains: lightly's loss imports `lightly.models.utils`, which
imports torchvision's `StochasticDepth` for a function about vision transformers; where torchvision is absent
the name is bound to `nn.Identity` during that import.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

DISTRIBUTIONS = ("lightly", "open_clip_torch", "pytorch-metric-learning")


def versions() -> dict[str, str]:
    """The installed peers and their versions."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def missing() -> tuple[str, ...]:
    """The peers that are not installed."""
    return tuple(name for name in DISTRIBUTIONS if name not in versions())


def lightly_loss() -> ModuleType:
    """lightly's module with `NTXentLoss`."""
    _enter("lightly", "lightly.utils", "lightly.loss", "lightly.models", "lightly.models.modules")
    with _torchvision_name():
        return import_module("lightly.loss.ntx_ent_loss")


def open_clip_loss() -> ModuleType:
    """open_clip's module with `ClipLoss`."""
    _enter("open_clip")
    return import_module("open_clip.loss")


def metric_learning_losses() -> ModuleType:
    """pytorch-metric-learning's package with `NTXentLoss`."""
    return import_module("pytorch_metric_learning.losses")


def metric_learning_distributed() -> ModuleType:
    """pytorch-metric-learning's module with `DistributedLossWrapper`."""
    return import_module("pytorch_metric_learning.utils.distributed")


def _enter(*packages: str) -> None:
    """Make packages importable from, without running their `__init__`; parents come before children."""
    for name in packages:
        if name in sys.modules:
            continue
        spec = find_spec(name)
        if spec is None:
            raise ModuleNotFoundError(f"no package {name}; `make setup` installs it", name=name)
        sys.modules[name] = module_from_spec(spec)


@contextmanager
def _torchvision_name() -> Iterator[None]:
    if find_spec("torchvision") is not None:
        yield
        return
    placeholder, ops = ModuleType("torchvision"), ModuleType("torchvision.ops")
    ops.StochasticDepth = nn.Identity  # type: ignore[attr-defined]
    sys.modules |= {"torchvision": placeholder, "torchvision.ops": ops}
    try:
        yield
    finally:
        del sys.modules["torchvision"], sys.modules["torchvision.ops"]
