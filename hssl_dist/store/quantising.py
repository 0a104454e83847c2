"""Float volumes as the store's two-byte numbers.

Measured on the real datasets (docs/decisions.md): int16 in steps of 2^-10 standard deviations is smaller and
closer to the original than float16. Steps are powers of two, so decoding is exact in float32: a volume that
is stored again does not change.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hssl_dist.errors import InputError
from hssl_dist.records import Scaling

if TYPE_CHECKING:
    from jaxtyping import Float32

    from hssl_dist.config.preprocess import StorageConfig

Dtype = Literal["int16", "float16"]
Stored = np.ndarray[Any, np.dtype[Any]]

AUTO_DTYPE: Dtype = "int16"
FINEST_STEP = 2.0**-10
_INT16_LIMIT = 32767
_FLOAT16_LIMIT = 65504.0


def stored_dtype(storage: StorageConfig) -> Dtype:
    """The type in which images are stored."""
    return AUTO_DTYPE if storage.dtype == "auto" else storage.dtype


def stored_numbers(dtype: Dtype, limit: float) -> tuple[np.dtype[Any], Scaling]:
    """The numbers in which values up to `limit`, positive or negative, are stored within half a step.

    Raises InputError if the limit is NaN or infinite, or does not fit float16.
    """
    if not math.isfinite(limit):
        raise InputError("the prepared volume has NaN or infinite voxels; all must be finite")
    return np.dtype(dtype), _SCALINGS[dtype](limit)


def quantise(image: Float32[np.ndarray, "*shape"], dtype: Dtype) -> tuple[Stored, Scaling]:
    """Stored numbers of values; see `stored_numbers`."""
    limit = float(np.abs([image.min(), image.max()]).max()) if image.size else 0.0
    numbers, scaling = stored_numbers(dtype, limit)
    stored = np.empty(image.shape, dtype=numbers)
    for part, values in zip(stored, image, strict=True):
        scaling.round_into(part, values.copy())
    return stored, scaling


def _int16(limit: float) -> Scaling:
    step = FINEST_STEP
    while limit > _INT16_LIMIT * step:
        step *= 2.0
    return Scaling(step)


def _float16(limit: float) -> Scaling:
    if limit > _FLOAT16_LIMIT:
        raise InputError(
            f"the prepared volume reaches {limit:g}, float16 ends at 65504; use storage.dtype=int16"
        )
    return Scaling()


_SCALINGS: dict[Dtype, Callable[[float], Scaling]] = {"int16": _int16, "float16": _float16}
