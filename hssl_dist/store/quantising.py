"""Float volumes as the store's two-byte numbers, and back.

Measured on the real datasets (docs/decisions.md): int16 in steps of 2^-10 standard deviations is smaller and
closer to the original than float16. Steps are powers of two, so decoding is exact in float32: a volume that
is stored again does not change.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hssl_dist.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float32, Shaped

Dtype = Literal["int16", "float16"]
Stored = np.ndarray[Any, np.dtype[Any]]

FINEST_STEP = 2.0**-10
_INT16_LIMIT = 32767
_FLOAT16_LIMIT = 65504.0


@dataclass(frozen=True, slots=True)
class Scaling:
    """`value = stored * scale_factor + add_offset` (the CF conventions' names)."""

    scale_factor: float
    add_offset: float


def quantise(image: Float32[np.ndarray, "*shape"], dtype: Dtype) -> tuple[Stored, Scaling]:
    """Stored numbers of finite values, each within half a step of its value.

    Raises InputError on NaN or infinity, and if the values do not fit float16.
    """
    limit = float(np.abs(image).max(initial=0.0))
    if not math.isfinite(limit):
        raise InputError("the prepared volume has NaN or infinite voxels; all must be finite")
    return _QUANTISERS[dtype](image, limit)


def dequantise(stored: Shaped[np.ndarray, "*shape"], scaling: Scaling) -> Float32[np.ndarray, "*shape"]:
    """Values of stored numbers, computed in float32."""
    values: Float32[np.ndarray, "*shape"] = stored.astype(np.float32)
    values *= np.float32(scaling.scale_factor)
    values += np.float32(scaling.add_offset)
    return values


def _int16(image: Float32[np.ndarray, "*shape"], limit: float) -> tuple[Stored, Scaling]:
    step = FINEST_STEP
    while limit > _INT16_LIMIT * step:
        step *= 2.0
    return np.rint(image / np.float32(step)).astype(np.int16), Scaling(step, 0.0)


def _float16(image: Float32[np.ndarray, "*shape"], limit: float) -> tuple[Stored, Scaling]:
    if limit > _FLOAT16_LIMIT:
        raise InputError(
            f"the prepared volume reaches {limit:g}, float16 ends at 65504; use storage.dtype=int16"
        )
    return image.astype(np.float16), Scaling(1.0, 0.0)


_QUANTISERS: dict[Dtype, Callable[[Float32[np.ndarray, "*shape"], float], tuple[Stored, Scaling]]] = {
    "int16": _int16,
    "float16": _float16,
}
