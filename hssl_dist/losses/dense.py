"""Dense correspondence: NT-Xent between matched points of two views (see `contrast`).

For a volume with points x_p (voxels, common frame) and unit vectors u_p (first view) and v_p (second view),
the 2P rows z = (u, v) sit at the places (x, x). The positive of u_p is v_p and the other way round; negatives
of a row are the valid rows of either view that lie at least `distance` voxels away, so that neighbours, which
show much the same tissue, do not repel each other. The mean is over all rows of all ranks that are valid and
have a negative.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from hssl_dist.losses.agreement import agreed_rows, check_temperature
from hssl_dist.losses.contrast import Marks, contrast, uncompiled


@uncompiled
def dense_contrast(
    first_points: Float[Tensor, "b p d"],
    second_points: Float[Tensor, "b p d"],
    coordinates: Float[Tensor, "b p 3"],
    valid: Bool[Tensor, "b p"],
    temperature: Float[Tensor, ""] | float,
    distance: float,
    *,
    counted: Num[Tensor, ""] | None = None,
    tile: int | None = None,
) -> Float[Tensor, ""]:
    """The rank's share of the loss with negatives within each volume; 0 if no row has a negative.

    Vectors of any length: they are normalised. Ranks may hold different `b`. `counted`, the sum over all
    ranks of `contrasted_rows`, may be given: then ranks exchange nothing. Raises ConfigError for a
    temperature that is not positive.
    """
    check_temperature(temperature)
    marks = Marks(place=coordinates.repeat(1, 2, 1), usable=valid.repeat(1, 2), distance=distance)
    rows = torch.cat((first_points, second_points), dim=1)
    return contrast(rows, temperature, marks, counted=counted, tile=tile)


@uncompiled
def dense_contrast_across(
    first_points: Float[Tensor, "b p d"],
    second_points: Float[Tensor, "b p d"],
    coordinates: Float[Tensor, "b p 3"],
    valid: Bool[Tensor, "b p"],
    regions: Int[Tensor, " b"],
    groups: Int[Tensor, " b"],
    temperature: Float[Tensor, ""] | float,
    distance: float,
    *,
    counts: tuple[int, ...] | None = None,
    tile: int | None = None,
) -> Float[Tensor, ""]:
    """The rank's share of the loss with the points of all ranks' other volumes as negatives too.

    `regions` tells volumes apart over all ranks; volumes of the same entry in `groups` (such as the regions
    of one patient) are no negatives of each other. Raises what `agreed_rows` does, on all ranks alike; with
    `counts`, the volumes of each rank, ranks have agreed before, and that is not asked again.
    """
    points = coordinates.shape[1]
    first, second = first_points.flatten(0, 1), second_points.flatten(0, 1)
    rows_of_ranks = (
        agreed_rows(first, second, temperature) if counts is None else tuple(points * n for n in counts)
    )
    marks = Marks(
        group=groups.repeat_interleave(points).repeat(2)[None],
        region=regions.repeat_interleave(points).repeat(2)[None],
        place=coordinates.flatten(0, 1).repeat(2, 1)[None],
        usable=valid.flatten().repeat(2)[None],
        distance=distance,
    )
    rows = torch.cat((first, second))[None]
    return contrast(rows, temperature, marks, rows_of_ranks=tuple(2 * n for n in rows_of_ranks), tile=tile)


def contrasted_rows(
    coordinates: Float[Tensor, "b p 3"], valid: Bool[Tensor, "b p"], distance: float
) -> Int[Tensor, ""]:
    """The rows (two a point) that have a negative within their volume, on this rank."""
    marks = Marks(place=coordinates, usable=valid, distance=distance)
    negative = marks.negative(marks)
    assert negative is not None  # there are marks
    negative.diagonal(dim1=1, dim2=2).fill_(value=False)
    return 2 * negative.any(dim=2).sum()
