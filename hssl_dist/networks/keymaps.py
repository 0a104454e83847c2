"""Parameter names of our U-Net in nnU-Net's `ResidualEncoderUNet`.

nnU-Net registers each convolution and norm twice (`conv` and `all_modules.0`) and the encoder again below the
decoder; its state dict lists every alias. `to_nnunet` writes all of them, so the result loads strictly.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hssl_dist.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

# (ours, nnU-Net's): numbers stand for themselves and keep their order.
NNUNET_NAMES: tuple[tuple[str, str], ...] = (
    ("encoder.stem.{leaf}", "encoder.stem.convs.0.{leaf}"),
    ("encoder.stages.{n}.{n}.conv1.{leaf}", "encoder.stages.{n}.blocks.{n}.conv1.{leaf}"),
    ("encoder.stages.{n}.{n}.conv2.{leaf}", "encoder.stages.{n}.blocks.{n}.conv2.{leaf}"),
    ("encoder.stages.{n}.{n}.skip.{n}.{leaf}", "encoder.stages.{n}.blocks.{n}.skip.{n}.{leaf}"),
    ("decoder.upsampling.{n}.{value}", "decoder.transpconvs.{n}.{value}"),
    ("decoder.stages.{n}.{n}.{leaf}", "decoder.stages.{n}.convs.{n}.{leaf}"),
    ("heads.{n}.{value}", "decoder.seg_layers.{n}.{value}"),
)
_FIELDS = {"n": r"\d+", "leaf": r"(?:conv|norm)\.(?:weight|bias)", "value": r"weight|bias"}
_ALIASES = {"conv.": "all_modules.0.", "norm.": "all_modules.1."}


def _translate(name: str, source: str, target: str) -> str | None:
    """`name` rewritten from the pattern `source` to the pattern `target`; None if it is no such name."""
    parts = re.split(r"\{(\w+)\}", source)
    pattern = "".join(f"({_FIELDS[part]})" if i % 2 else re.escape(part) for i, part in enumerate(parts))
    match = re.fullmatch(pattern, name)
    if match is None:
        return None
    values = iter(match.groups())
    return re.sub(r"\{\w+\}", lambda _: next(values), target)


def _nnunet_aliases(name: str) -> Iterator[str]:
    """All names under which nnU-Net lists one parameter, the canonical one first."""
    names = [name]
    for ours, theirs in _ALIASES.items():
        head, separator, leaf = name.rpartition(f".{ours}")
        if separator:
            names.append(f"{head}.{theirs}{leaf}")
    for alias in names:
        yield alias
        if alias.startswith("encoder."):
            yield f"decoder.{alias}"


def nnunet_names(name: str) -> tuple[str, ...]:
    """All names in nnU-Net of one of our parameters, the canonical one first.

    Raises CheckpointError for a name it cannot map.
    """
    targets = [new for ours, theirs in NNUNET_NAMES if (new := _translate(name, ours, theirs))]
    if not targets:
        raise CheckpointError(f"parameter {name!r} is no part of a segmentation U-Net; leave it out")
    return tuple(_nnunet_aliases(targets[0]))


def to_nnunet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a `ResidualUNet` under nnU-Net's names; aliases share their tensor.

    Raises CheckpointError for a name it cannot map.
    """
    return {new: tensor for name, tensor in state.items() for new in nnunet_names(name)}
