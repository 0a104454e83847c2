"""Image level: NT-Xent over the negatives of all ranks, with the exact gradient (see `contrast`)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hssl_dist.errors import TrainingError
from hssl_dist.losses.agreement import agreed_rows
from hssl_dist.losses.contrast import Marks, contrast, uncompiled


@uncompiled
def nt_xent(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n d"],
    temperature: Float[Tensor, ""] | float,
    *,
    groups: Int[Tensor, " n"] | None = None,
    counts: tuple[int, ...] | None = None,
    tile: int | None = None,
) -> Float[Tensor, ""]:
    """The rank's share of the loss; row `k` of `first` and of `second` are two views of one region.

    All views of all ranks' other regions are negatives, except those of the same entry in `groups` (any
    integers that mean the same on all ranks). The mean is over the views that have a negative; 0 if none has.

    Embeddings of any length (they are normalised) and any floating dtype: computed in float32, in float64 for
    float64. Ranks may hold different `n`, also 0. A tensor `temperature` gets its exact gradient. The result
    must be weighted alike on all ranks. `tile` bounds memory: tile x tile logits at a time. Under
    `torch.compile` it runs as it is, between the compiled parts.

    Raises on all ranks alike: what `agreed_rows` does, and TrainingError for fewer than 2 regions in all.
    `counts`, the `n` of each rank, may be given once ranks have agreed: then nothing of it is asked again,
    and the host does not wait for the device.
    """
    counts = counts or agreed_rows(first, second, temperature)
    if sum(counts) < 2:
        raise TrainingError(
            f"the contrastive loss got {sum(counts)} regions over {len(counts)} ranks: "
            "there are no negatives; raise global_batch to 2 or more"
        )
    marks = Marks(group=None if groups is None else groups.repeat(2)[None])
    rows = torch.cat((first, second))[None]
    return contrast(rows, temperature, marks, rows_of_ranks=tuple(2 * n for n in counts), tile=tile)
