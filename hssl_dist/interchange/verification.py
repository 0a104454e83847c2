"""The network that another tool builds from an export, against ours: same weights, same input."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hssl_dist.errors import CheckpointError
from hssl_dist.interchange.portable import Portable

TOLERANCE = 1e-5
"""Largest difference accepted, as a share of the largest output or of one, whichever is more."""

_SEED = 0

Importer = Callable[[str], Any]
"""Gives a module by its name, or raises ImportError: `importlib.import_module`."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a format's writer says of what it wrote.

    `names` maps each exported parameter of ours to its names there; `new` names parameters of the other
    tool's network that the model has no weights for, `assumed` what the files say that nothing else said.
    """

    names: dict[str, tuple[str, ...]]
    new: dict[str, str]
    assumed: dict[str, str]


@dataclass(frozen=True, slots=True)
class Verification:
    """The outcome of a comparison; `max_difference` is None if the library was missing; `note` says so."""

    verified: bool
    note: str
    input_shape: tuple[int, ...] = ()
    outputs: int = 0
    max_difference: float | None = None
    tolerance: float = TOLERANCE


def missing_library(error: ImportError, packages: str) -> Verification:
    """The outcome where the other tool is not installed."""
    return Verification(
        False, f"not verified: {error}; install {packages} and export again to have it compared"
    )


def versions(*packages: str) -> str:
    """`name version` of each installed package."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


def compare(portable: Portable, theirs: nn.Module, library: str, *, deep_supervision: bool) -> Verification:
    """Both networks on the same random image, two voxels along each axis of the deepest stage.

    With `deep_supervision` all outputs are compared, otherwise the finest. Raises CheckpointError if any
    differs by more than the tolerance or is not finite.
    """
    z, y, x = portable.config.reduction
    shape = (1, portable.in_channels, 2 * z, 2 * y, 2 * x)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(_SEED))
    with torch.no_grad():
        expected = _outputs(portable.network.train(deep_supervision), images)
        found = _outputs(theirs.train(deep_supervision), images)
    portable.network.eval()
    if [tuple(a.shape) for a in found] != [tuple(b.shape) for b in expected]:
        raise CheckpointError(
            f"{library} gives outputs of {[tuple(a.shape) for a in found]}, ours are "
            f"{[tuple(b.shape) for b in expected]}; nothing was exported"
        )
    difference = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    limit = TOLERANCE * max(1.0, max(float(b.abs().max()) for b in expected))
    if not difference <= limit:
        raise CheckpointError(
            f"the network that {library} builds differs by {difference:g} from ours, at most {limit:g} is "
            "accepted; nothing was exported"
        )
    return Verification(True, f"verified with {library}", shape, len(expected), difference, limit)


def load_strictly(theirs: nn.Module, weights: dict[str, Tensor], portable: Portable, heads: str) -> None:
    """Load exported weights; a pretrained model's stand-in heads, under `heads`, complete them.

    Raises CheckpointError if a name or shape of either side has no counterpart.
    """
    if not portable.has_heads:
        stand_ins = portable.network.heads.state_dict()
        weights = weights | {f"{heads}.{name}": tensor for name, tensor in stand_ins.items()}
    try:
        theirs.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise CheckpointError(f"the exported weights do not load: {text}; nothing was exported") from error


def _outputs(network: nn.Module, images: Tensor) -> Sequence[Tensor]:
    answer = network(images)
    return [answer] if isinstance(answer, Tensor) else list(answer)
