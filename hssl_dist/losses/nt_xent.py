"""Image level: NT-Xent over the negatives of all ranks, with the exact gradient.

    z      = all 2N unit embeddings of the global batch, both views; M = 2N rows
    s_ij   = z_i . z_j / temperature
    N_i    = log sum over j of e^{s_ij}, without i itself and its positive
    loss_i = softplus(N_i - s_i,pos(i))           = -log softmax of the positive
    L      = 1 / M * sum over i of loss_i

Keeping the positive out of N_i keeps the gradient accurate when the loss is nearly zero. With
a_i = logaddexp(N_i, s_i,pos(i)) and q_i = sigmoid(N_i - s_i,pos(i)), symmetry of s gives

    temperature * M * dL/dz_i = sum over negatives j of (e^{s_ij - a_i} + e^{s_ij - a_j}) z_j
                                - (q_i + q_pos(i)) z_pos(i)
    temperature * M * dL/dtemperature = - sum over i, negatives j of e^{s_ij - a_i} (s_ij - s_i,pos(i))

so a rank that knows all z and all a finds the gradient of the *global* loss for its own rows by itself: an
all-gather of z and one of a forward, no collective backward. Rows go through in tiles; nothing of size M x M
or n x M is kept. Each rank's value is W / M times the sum over its own rows and its gradient W times that of
L, so that DDP's mean over W ranks is L and its gradient, for ragged ranks too (see `scaling`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from hssl_dist import collectives
from hssl_dist.losses.scaling import at_least_float32

if TYPE_CHECKING:
    from collections.abc import Iterator


def nt_xent(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n d"],
    temperature: Float[Tensor, ""] | float,
    *,
    tile: int = 2048,
) -> Float[Tensor, ""]:
    """The rank's share of the loss above; row `k` of `first` and of `second` are two views of one region.

    Embeddings of any length (they are normalised here) and any floating dtype: computed in float32, in
    float64 for float64. Ranks may hold different `n`, also 0. A tensor `temperature` gets its exact gradient.
    The result must be weighted alike on all ranks. `tile` bounds memory: tile x tile logits at a time.
    Without any negative the loss is 0.
    """
    rows = torch.cat((first, second))
    with torch.autocast(rows.device.type, enabled=False):
        rows = F.normalize(at_least_float32(rows), dim=1)
        temperature = torch.as_tensor(temperature, dtype=rows.dtype, device=rows.device)
        loss: Tensor = _NtXent.apply(rows, temperature, tile)  # type: ignore[no-untyped-call]
    return loss


class _Tile(NamedTuple):
    own: slice  # rows of this rank
    others: slice  # rows of all ranks
    logits: Tensor  # own x others; -inf for a row itself and its positive


def _tiles(rows: Tensor, all_rows: Tensor, start: int, temperature: Tensor, tile: int) -> Iterator[_Tile]:
    """The logits of this rank's rows against all rows, tile by tile, in order of own rows."""
    count, total = rows.shape[0], all_rows.shape[0]
    itself = torch.arange(start, start + count, device=rows.device)
    positive = itself.roll(count // 2)
    for i in range(0, count, tile):
        own = slice(i, min(i + tile, count))
        for j in range(0, total, tile):
            others = slice(j, min(j + tile, total))
            columns = torch.arange(j, others.stop, device=rows.device)
            excluded = (columns == itself[own, None]) | (columns == positive[own, None])
            logits = rows[own] @ all_rows[others].T / temperature
            yield _Tile(own, others, logits.masked_fill_(excluded, -torch.inf))


def _positive_logits(rows: Tensor, temperature: Tensor) -> Tensor:
    return (rows * rows.roll(rows.shape[0] // 2, dims=0)).sum(dim=1) / temperature


class _NtXent(torch.autograd.Function):
    """This rank's share of the loss; see the module's formulas."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, temperature: Tensor, tile: int) -> Tensor:
        gathered = collectives.gather_rows(rows)
        negatives = rows.new_full((rows.shape[0],), -torch.inf)
        for own, _, logits in _tiles(rows, gathered.rows, gathered.start, temperature, tile):
            negatives[own] = torch.logaddexp(negatives[own], logits.logsumexp(dim=1))
        positive = _positive_logits(rows, temperature)
        all_sums = collectives.gather_rows(torch.logaddexp(negatives, positive), gathered.counts).rows
        ctx.save_for_backward(rows, gathered.rows, all_sums, positive, negatives, temperature)
        ctx.start, ctx.tile = gathered.start, tile
        ctx.scale = collectives.world_size() / max(gathered.rows.shape[0], 1)
        loss: Tensor = F.softplus(negatives - positive).sum() * ctx.scale
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, all_rows, all_sums, positive, negatives, temperature = ctx.saved_tensors
        own_sums = all_sums[ctx.start : ctx.start + rows.shape[0]]
        grad = torch.zeros_like(rows)
        slope = torch.zeros_like(positive)
        with torch.autocast(rows.device.type, enabled=False):
            for own, others, logits in _tiles(rows, all_rows, ctx.start, temperature, ctx.tile):
                share = torch.exp(logits - own_sums[own, None])
                gap = (logits - positive[own, None]).masked_fill_(logits == -torch.inf, 0)
                slope[own] -= (share * gap).sum(dim=1)
                share += torch.exp(logits - all_sums[others])
                grad[own] += share @ all_rows[others]
        pull = torch.sigmoid(negatives - positive)
        half = rows.shape[0] // 2
        grad -= (pull + pull.roll(half))[:, None] * rows.roll(half, dims=0)
        factor = grad_outputs[0] * ctx.scale / temperature
        return grad * factor, slope.sum() * factor, None
