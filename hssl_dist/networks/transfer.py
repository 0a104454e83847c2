"""From a pretrained network to another one: which parameters are taken, and an account of all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hssl_dist.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

STEM_WEIGHT = "encoder.stem.conv.weight"


@dataclass(frozen=True, slots=True)
class TransferReport:
    """Every parameter of the target stands in `loaded` or `initialised`, every one of the source in `loaded`
    or `unused`; `inflated` are those of `loaded` that were spread over more input channels."""

    loaded: tuple[str, ...]
    inflated: tuple[str, ...]
    initialised: dict[str, str]
    unused: dict[str, str]

    @property
    def parts(self) -> dict[str, dict[str, int]]:
        """Counts of parameters by part: `loaded` and `initialised` in the target, `unused` of the source."""
        fates = {"loaded": self.loaded, "initialised": self.initialised, "unused": self.unused}
        names = sorted({part_of(name) for fate in fates.values() for name in fate})
        return {
            part: {
                fate: count
                for fate, named in fates.items()
                if (count := sum(part_of(name) == part for name in named))
            }
            for part in names
        }

    @property
    def summary(self) -> str:
        """One line for people."""
        return (
            f"{len(self.loaded)} parameters loaded ({len(self.inflated)} inflated), "
            f"{len(self.initialised)} new, {len(self.unused)} of the source not used"
        )


def transfer(model: nn.Module, state: Mapping[str, Tensor], parts: Sequence[str]) -> TransferReport:
    """Load the parameters of `parts` (first components of their names) from `state` into `model`.

    A part is loaded whole or not at all: CheckpointError names the first parameter that is missing on either
    side, has another shape, is not of real numbers or not finite, and the model is left as it was. A stem for
    one input channel fits one for several: its weights are repeated and divided by their number, so equal
    channels give the same response.
    """
    target = model.state_dict()
    _check_parts(target, state, parts)
    chosen = {name: tensor for name, tensor in state.items() if part_of(name) in parts}
    inflated = []
    for name in sorted(chosen.keys() | {name for name in target if part_of(name) in parts}):
        if name not in chosen or name not in target:
            where = "the model" if name in chosen else "the source"
            raise CheckpointError(f"{name} is missing in {where}; load weights of the same network config")
        expected, found = target[name].shape, chosen[name].shape
        if name == STEM_WEIGHT and found[1] == 1 < expected[1] and found[2:] == expected[2:]:
            chosen[name] = chosen[name].repeat(1, expected[1], 1, 1, 1) / expected[1]
            inflated.append(name)
        if chosen[name].shape != expected:
            raise CheckpointError(
                f"{name} has shape {tuple(found)} in the source and {tuple(expected)} in the model; "
                "load weights of the same network config"
            )
        if not chosen[name].is_floating_point():
            raise CheckpointError(f"{name} of the source is of {chosen[name].dtype}, expected real numbers")
        if not chosen[name].isfinite().all():
            raise CheckpointError(
                f"{name} of the source is not finite everywhere; choose an earlier checkpoint"
            )
    with torch.no_grad():
        for name, tensor in chosen.items():
            target[name].copy_(tensor)
    return TransferReport(
        loaded=tuple(sorted(chosen)),
        inflated=tuple(inflated),
        initialised={
            name: "its part was not asked for" if name in state else "the source has no such parameter"
            for name in sorted(target.keys() - chosen.keys())
        },
        unused={
            name: "its part was not asked for" if name in target else "the model has no such parameter"
            for name in sorted(state.keys() - chosen.keys())
        },
    )


def part_of(name: str) -> str:
    """The part a parameter belongs to: the first component of its name."""
    return name.partition(".")[0]


def _check_parts(target: Mapping[str, Tensor], state: Mapping[str, Tensor], parts: Sequence[str]) -> None:
    for where, names in (("model", target), ("source", state)):
        known = sorted({part_of(name) for name in names})
        if missing := [part for part in parts if part not in known]:
            raise CheckpointError(f"the {where} has no part {missing[0]!r}; its parts are {', '.join(known)}")
