"""The tiled contrastive kernel under the image level and the dense term: exact over all ranks, linear memory.

    z      = unit rows in pairs: row k and row k + n/2 of a rank are each other's positive
    s_ij   = z_i . z_j / temperature
    N_i    = log sum over the negatives j of i of e^{s_ij}
    loss_i = softplus(N_i - s_i,pos(i))           = -log softmax of the positive
    L      = 1 / M * sum over i of loss_i,        M rows that have a negative

Which rows are negatives of each other is symmetric and told by their `Marks`. Keeping the positive out of N_i
keeps the gradient accurate when the loss is nearly zero. With a_i = logaddexp(N_i, s_i,pos(i)) and
q_i = sigmoid(N_i - s_i,pos(i)), symmetry of s and of the negatives gives

    G_i                         = sum over negatives j of (e^{s_ij - a_i} + e^{s_ij - a_j}) z_j
    temperature * M * dL/dz_i   = G_i - (q_i + q_pos(i)) z_pos(i)
    temperature * M * dL/dtemperature = sum over i of q_i s_i,pos(i) - z_i . G_i / (2 temperature)

so a rank that knows all z and all a finds the gradient of the *global* loss for its own rows by itself: an
all-gather of z and one of a forward, no collective backward. (A rank's own part of the temperature's gradient
has no meaning alone; the ranks' mean is exact.) Logits exist one tile at a time; where a tile and its mirror
image both belong to this rank, one product serves both. A row without a negative has a_i = infinity: it
repels nothing and is not counted, and the other ranks see that without another exchange.

Each rank's value is W / M times the sum over its own rows and its gradient W times that of L, so that DDP's
mean over W ranks is L and its gradient, for ragged ranks too (see `scaling`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor
from torch.autograd.function import once_differentiable

from hssl_dist import collectives
from hssl_dist.losses.scaling import at_least_float32

_TILES = {"cpu": 512, "cuda": 4096}  # a core's cache; enough work to hide a kernel's launch

Function = TypeVar("Function", bound=Callable[..., Tensor])


def uncompiled(function: Function) -> Function:
    """The function, run as it is between the parts that `torch.compile` compiles."""
    return cast("Function", torch.compiler.disable(function))  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Marks:
    """What tells which rows are negatives of each other; each has one entry per row, or is None.

    Two rows are negatives unless they are a pair, one of them is not `usable`, or they have the same `group`.
    With `place`, rows of the same `region` (all rows, if that is None) are negatives too once they lie
    `distance` or more from each other, and without `group` only those are.
    """

    group: Int[Tensor, "pool n"] | None = None
    region: Int[Tensor, "pool n"] | None = None
    place: Float[Tensor, "pool n 3"] | None = None
    usable: Bool[Tensor, "pool n"] | None = None
    distance: float = 0.0

    def part(self, pools: slice, rows: slice) -> Marks:
        """The marks of some rows."""
        return self._mapped(lambda mark: mark[pools, rows])

    def gathered(self, counts: tuple[int, ...]) -> Marks:
        """The marks of all ranks' rows, which are one pool."""
        return self._mapped(lambda mark: collectives.gather_rows(mark[0], counts).rows[None])

    def negative(self, other: Marks) -> Bool[Tensor, "pool n m"] | None:
        """Which of the other rows may be negatives of which of these, pairs aside; None: all."""
        allowed: Tensor | None = None
        if self.group is not None and other.group is not None:
            allowed = self.group[:, :, None] != other.group[:, None, :]
        if self.place is not None and other.place is not None:
            apart = _apart(self.place, other.place, self.distance)
            if self.region is not None and other.region is not None:
                apart &= self.region[:, :, None] == other.region[:, None, :]
            allowed = apart if allowed is None else allowed.logical_or_(apart)
        if self.usable is not None and other.usable is not None:
            both = self.usable[:, :, None] & other.usable[:, None, :]
            allowed = both if allowed is None else allowed.logical_and_(both)
        return allowed

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Marks:
        marks = (self.group, self.region, self.place, self.usable)
        group, region, place, usable = (None if mark is None else change(mark) for mark in marks)
        return Marks(group, region, place, usable, self.distance)


def _apart(places: Tensor, others: Tensor, distance: float) -> Tensor:
    """Whether places are `distance` or more from others, the same both ways and for any shape of tile."""
    squared = places.new_zeros(())
    for axis in range(3):
        squared = squared + (places[:, :, None, axis] - others[:, None, :, axis]).square_()
    return squared >= distance**2


def contrast(
    rows: Float[Tensor, "pool n d"],
    temperature: Float[Tensor, ""] | float,
    marks: Marks,
    *,
    rows_of_ranks: tuple[int, ...] | None = None,
    counted: Num[Tensor, ""] | None = None,
    tile: int | None = None,
) -> Float[Tensor, ""]:
    """The rank's share of the loss above; rows of different pools are no negatives.

    `rows_of_ranks` (the ranks' `n`) makes the rows of all ranks one pool, exchanging rows and marks; without
    it pools are this rank's alone. `counted` is M, where it is known: then nothing is exchanged for it.
    Rows of any length and floating dtype: normalised here, computed in float32, in float64 for float64. A
    tensor `temperature` gets its exact gradient. `tile` bounds memory: about tile x tile logits at a time.
    """
    tile = tile or _TILES.get(rows.device.type, 1024)
    with torch.autocast(rows.device.type, enabled=False):
        unit = F.normalize(at_least_float32(rows), dim=2)
        if isinstance(temperature, Tensor):
            temperature = temperature.to(unit.device, unit.dtype, non_blocking=True)
        else:
            temperature = unit.new_full((), temperature)
        loss: Tensor = _Contrast.apply(  # type: ignore[no-untyped-call]
            unit, temperature, marks, rows_of_ranks, counted, tile
        )
    return loss


class _Tile(NamedTuple):
    pools: slice
    own: slice  # rows of this rank
    others: slice  # rows of all ranks
    mirror: (
        slice | None
    )  # `others` as rows of this rank, if the tile's mirror image is this rank's and another


class _Tiles:
    """This rank's rows against all rows, tile by tile."""

    def __init__(
        self,
        rows: Tensor,
        all_rows: Tensor,
        marks: tuple[Marks, Marks],
        start: int,
        temperature: Tensor,
        tile: int,
    ) -> None:
        self.scaled, self.all_rows = rows / temperature, all_rows
        self.own_marks, self.all_marks = marks
        self.start, self.tile = start, tile

    def __iter__(self) -> Iterator[tuple[_Tile, Tensor]]:
        """Tiles and their logits, -inf for what is no negative; the logits may be overwritten."""
        pools, count, _ = self.scaled.shape
        before, after = (0, self.start), (self.start + count, self.all_rows.shape[1])
        together = max(1, self.tile // max(count, 1)) ** 2
        for pool in _cut(0, pools, together):
            own = list(_cut(0, count, self.tile))
            for i, rows in enumerate(own):
                for low, high in (before, after):
                    for others in _cut(low, high, self.tile):
                        place = _Tile(pool, rows, others, None)
                        yield place, self._logits(place)
                for mirror in own[i:]:
                    others = slice(mirror.start + self.start, mirror.stop + self.start)
                    place = _Tile(pool, rows, others, None if mirror is rows else mirror)
                    yield place, self._without_pairs(place, self._logits(place))

    def _logits(self, at: _Tile) -> Tensor:
        logits = self.scaled[at.pools, at.own] @ self.all_rows[at.pools, at.others].mT
        allowed = self.own_marks.part(at.pools, at.own).negative(self.all_marks.part(at.pools, at.others))
        return logits if allowed is None else logits.masked_fill_(~allowed, -torch.inf)

    def _without_pairs(self, at: _Tile, logits: Tensor) -> Tensor:
        """A row is no negative of itself and of its positive, which lies half of this rank's rows away."""
        half = self.scaled.shape[1] // 2
        same = at.own.start - (at.others.start - self.start)
        for offset in (same, same + half, same - half):
            if -logits.shape[1] < offset < logits.shape[2]:
                logits.diagonal(offset, dim1=1, dim2=2).fill_(-torch.inf)
        return logits


def _cut(start: int, stop: int, size: int) -> Iterator[slice]:
    for low in range(start, stop, size):
        yield slice(low, min(low + size, stop))


class _Contrast(torch.autograd.Function):
    """This rank's share of the loss; see the module's formulas."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        temperature: Tensor,
        marks: Marks,
        rows_of_ranks: tuple[int, ...] | None,
        counted: Tensor | None,
        tile: int,
    ) -> Tensor:
        all_rows, all_marks, ctx.start = rows.detach(), marks, 0
        if rows_of_ranks is not None:
            gathered = collectives.gather_rows(rows[0], rows_of_ranks)
            all_rows, ctx.start = gathered.rows[None], gathered.start
            all_marks = marks.gathered(rows_of_ranks)
        ctx.marks, ctx.tile = (marks, all_marks), tile
        negatives = _log_sums(_Tiles(rows, all_rows, ctx.marks, ctx.start, temperature, tile))
        positive = (rows * _partner(rows)).sum(dim=2) / temperature
        sums = torch.logaddexp(negatives, positive)
        sums.masked_fill_(negatives == -torch.inf, torch.inf)
        if rows_of_ranks is not None:
            sums = collectives.gather_rows(sums[0], rows_of_ranks).rows[None]
        if counted is None:
            counted = (sums != torch.inf).sum()
            if rows_of_ranks is None:
                counted = collectives.all_reduce_sum(counted)
        scale = collectives.world_size() / counted.clamp(min=1).to(rows.dtype)
        ctx.save_for_backward(rows, all_rows, sums, positive, negatives, temperature, scale)
        loss: Tensor = F.softplus(negatives - positive).sum() * scale
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        rows, all_rows, sums, positive, negatives, temperature, scale = ctx.saved_tensors
        own_sums = sums[:, ctx.start : ctx.start + rows.shape[1]]
        grad = torch.zeros_like(rows)
        with torch.autocast(rows.device.type, enabled=False):
            for at, logits in _Tiles(rows, all_rows, ctx.marks, ctx.start, temperature, ctx.tile):
                weights = (logits - own_sums[at.pools, at.own, None]).exp_()
                weights += logits.sub_(sums[at.pools, None, at.others]).exp_()
                grad[at.pools, at.own] += weights @ all_rows[at.pools, at.others]
                if at.mirror is not None:
                    grad[at.pools, at.mirror] += weights.mT @ rows[at.pools, at.own]
            pull = torch.sigmoid(negatives - positive)
            towards = (rows * grad).sum(dim=2) / (2 * temperature)
            slope = (pull * positive - towards).sum()
            grad -= (pull + _partner(pull))[:, :, None] * _partner(rows)
        factor = grad_outputs[0] * scale / temperature
        return grad.mul_(factor), slope * factor, None, None, None, None


def _log_sums(tiles: _Tiles) -> Float[Tensor, "pool n"]:
    """N of this rank's rows."""
    sums = tiles.scaled.new_full(tiles.scaled.shape[:2], -torch.inf)
    for at, logits in tiles:
        sums[at.pools, at.own] = torch.logaddexp(sums[at.pools, at.own], logits.logsumexp(dim=2))
        if at.mirror is not None:
            sums[at.pools, at.mirror] = torch.logaddexp(sums[at.pools, at.mirror], logits.logsumexp(dim=1))
    return sums


def _partner(x: Tensor) -> Tensor:
    """Each row's positive: this rank's rows, half of them further."""
    return x.roll(x.shape[1] // 2, dims=1)
