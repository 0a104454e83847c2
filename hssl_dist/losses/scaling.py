"""How a loss over all ranks' samples becomes each rank's loss.

DDP averages the ranks' gradients. With W ranks and M samples (or rows, or voxels) over all of them, a rank
whose loss is W / M times the sum over its own samples contributes exactly its part of the gradient of the
mean over all M, whatever number of samples each rank holds. A plain mean per rank does not: it weights the
samples of small ranks more.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Num
from torch import Tensor

from hssl_dist import collectives


def scale_to_ranks(local_sum: Float[Tensor, ""], local_count: Num[Tensor, ""] | int) -> Float[Tensor, ""]:
    """W / M * `local_sum`, with M the sum of all ranks' `local_count`; zero if there is nothing to count."""
    count = (
        local_count.double()
        if isinstance(local_count, Tensor)
        else local_sum.new_full((), local_count, dtype=torch.float64)
    )
    return scale_to_total(local_sum, collectives.all_reduce_sum(count))


def scale_to_total(local_sum: Float[Tensor, ""], count: Num[Tensor, ""] | int) -> Float[Tensor, ""]:
    """W / M * `local_sum` where M, `count`, is known; zero if there is nothing to count."""
    if not isinstance(count, Tensor):
        return local_sum * (collectives.world_size() / max(count, 1))
    factor = collectives.world_size() / count.double().clamp(min=1)
    return local_sum * factor.to(local_sum.dtype)


def at_least_float32(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`x` in float32, or as it is in float64: losses are not computed in half precision."""
    return x if x.dtype == torch.float64 else x.float()
