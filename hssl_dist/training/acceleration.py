"""How a step is made faster, or smaller in memory: what `config.acceleration` says, done to a network.

Weights, their names and the optimiser's state are the same with and without: a run may go on with other
settings. docs/speed.md has what each is for and what it was measured to do.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hssl_dist import collectives
from hssl_dist.config.acceleration import AccelerationConfig, StepAccelerationConfig
from hssl_dist.errors import ConfigError
from hssl_dist.networks.unet import ResidualEncoder, UNetDecoder

_CACHE = "TORCHINDUCTOR_CACHE_DIR"
_COMPILERS: tuple[str, ...] = ("g++", "clang++")
_C_COMPILERS: tuple[str, ...] = ("gcc", "clang", "cc")  # for GPUs, whose kernels' launchers are in C


@contextmanager
def accelerated(network: nn.Module, settings: StepAccelerationConfig, device: torch.device) -> Iterator[None]:
    """Inside, the U-Nets in a network compute as the settings say; after it, as ever.

    Raises ConfigError if they cannot be compiled on this machine.
    """
    with ExitStack() as undone:
        if settings.recompute_stages:
            undone.enter_context(_recomputed(network, settings.recompute_stages))
        if settings.channels_last:
            undone.enter_context(_channels_last(network))
        if settings.compile:
            undone.enter_context(_compiled(network, device))
        yield


def uncompiled(settings: StepAccelerationConfig) -> AbstractContextManager[Any]:
    """Inside, nothing is compiled for other sizes than a step's, such as a validation's."""
    if not settings.compile:
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def distributed(network: nn.Module, settings: AccelerationConfig, device: torch.device) -> nn.Module:
    """The network in DDP if there is a process group; it averages the gradients over ranks."""
    if not collectives.is_distributed():
        return network
    with collectives.joined("starting to train a stage"):
        return DistributedDataParallel(
            network,
            device_ids=[device] if device.type == "cuda" else None,
            bucket_cap_mb=settings.bucket_mb,
            gradient_as_bucket_view=settings.bucket_views,
        )


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Where compiled code is kept on this node, for all ranks and later runs: below the user's caches.

    $TORCHINDUCTOR_CACHE_DIR if somebody has set it. It is code that will be run, so it is to be the user's
    alone: torch's own default, which it writes into that variable as soon as it is imported, has a name that
    anybody can foresee, in a folder that all can write to.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    given = environment.get(_CACHE)
    if given and Path(given) != Path(default_cache_dir()):
        return Path(given)
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache", "hssl", "compiled")


def check_compiler(device: torch.device, environment: Mapping[str, str]) -> None:
    """Raise ConfigError if what `torch.compile` needs to write code for the device is not there."""
    variable, names = ("CC", _C_COMPILERS) if device.type == "cuda" else ("CXX", _COMPILERS)
    if given := environment.get(variable):
        names = (given,)
    path = environment.get("PATH")
    if not any(shutil.which(name, path=path) for name in names):
        raise ConfigError(
            f"acceleration.compile needs a compiler, and this machine has no {' or '.join(names)}; install "
            "one (g++ on Debian), or leave acceleration.compile out"
        )
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not header.exists():
        raise ConfigError(
            f"acceleration.compile needs Python's headers, and there is no {header}; install them "
            "(python3-dev on Debian), or leave acceleration.compile out"
        )


# --------------------------------------------------------------------------------------------------- settings


def _halves(network: nn.Module) -> list[ResidualEncoder | UNetDecoder]:
    return [part for part in network.modules() if isinstance(part, ResidualEncoder | UNetDecoder)]


@contextmanager
def _recomputed(network: nn.Module, stages: int) -> Iterator[None]:
    for half in _halves(network):
        half.recomputed_stages = stages
    try:
        yield
    finally:
        for half in _halves(network):
            half.recomputed_stages = 0


@contextmanager
def _channels_last(network: nn.Module) -> Iterator[None]:
    """Convolutions get volumes whose channels lie last, and so work in that layout.

    The weights stay as they are: they are small, and torch lays a copy of them out at each use. So neither
    the optimiser nor a checkpoint knows of it.
    """
    layers = [part for part in network.modules() if isinstance(part, nn.Conv3d | nn.ConvTranspose3d)]
    hooks = [layer.register_forward_pre_hook(_lay_out) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _lay_out(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].contiguous(memory_format=torch.channels_last_3d), *inputs[1:])


@contextmanager
def _compiled(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Each stage of the U-Nets on its own: it compiles in parts that ranks can begin to average the gradients
    of, and the losses, which have their own forward and backward, stay between them.

    Compiled in place, so the weights' names do not change; for fixed sizes, of which a run has few: those of
    a micro-batch and of the last, smaller one, with and without a graph.
    """
    check_compiler(device, os.environ)
    folder = cache_folder(os.environ)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"compiled code cannot be kept in {folder}: {error.strerror}; set {_CACHE} to a folder of yours, "
            "or leave acceleration.compile out"
        ) from None
    os.environ[_CACHE] = str(folder)
    stages: list[nn.Module] = []
    for part in _halves(network):
        stages += [part.stem, *part.stages] if isinstance(part, ResidualEncoder) else part.stages
    # All stages have the code of one class, to which torch else grants eight compilations together.
    known = signature(torch.compile).parameters
    options = {"isolate_recompiles": True} if "isolate_recompiles" in known else {}
    for stage in stages:
        stage.compile(dynamic=False, **options)
    try:
        yield
    finally:
        for stage in stages:
            stage._compiled_call_impl = None
