"""The precision of a network's forward pass: as the config says, or as suits the hardware."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hssl_dist.config.parts import Precision


_LOWER = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def resolved(precision: Precision, device: torch.device) -> Literal["float32", "bfloat16", "float16"]:
    """What `auto` comes to on a device; any other precision as it is.

    bfloat16 on AMD's CPUs with AVX-512 BF16, where it was measured to be faster (docs/decisions.md), and
    where there are units made for it: on CPUs with AMX, and on GPUs. Elsewhere bfloat16 is emulated: GPUs get
    float16, whose gradients need a `loss_scale`, and CPUs float32.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "bfloat16" if device.type == "cpu" and _suits(_capabilities()) else "float32"


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context of a forward pass on a device in the config's precision."""
    lower = _LOWER.get(resolved(precision, device))
    return torch.autocast(device.type, lower or torch.bfloat16, enabled=lower is not None)


def _capabilities() -> Mapping[str, Any]:
    """What torch knows of the CPU; nothing before it could tell."""
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return known


def _suits(cpu: Mapping[str, Any]) -> bool:
    avx512 = bool(cpu.get("avx512_bf16")) and "AMD" in str(cpu.get("cpu_name"))
    return bool(cpu.get("amx_bf16")) or avx512
