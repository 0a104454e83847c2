"""Dense correspondence: NT-Xent between matched points of two views, within each volume.

For a volume with points x_p (voxels, common frame) and unit vectors u_p (first view) and v_p (second view),
the 2P rows z = (u, v) sit at the places (x, x). The positive of u_p is v_p and the other way round; negatives
of a row are the valid rows of either view that lie at least `distance` voxels away, so that neighbours, which
show much the same tissue, do not repel each other.

    loss_i = softplus(log sum over negatives j of e^{s_ij} - s_i,pos(i)),  s_ij = z_i . z_j / temperature

averaged over all rows of all ranks that are valid and have a negative.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from hssl_dist.losses.scaling import at_least_float32, scale_to_ranks


def dense_contrast(
    first_points: Float[Tensor, "b p d"],
    second_points: Float[Tensor, "b p d"],
    coordinates: Float[Tensor, "b p 3"],
    valid: Bool[Tensor, "b p"],
    temperature: Float[Tensor, ""] | float,
    distance: float,
) -> Float[Tensor, ""]:
    """The rank's share of the loss above; 0 if no point is valid or none lies `distance` voxels from another.

    Vectors of any length: they are normalised here. Ranks may hold different `b`.
    """
    with torch.autocast(first_points.device.type, enabled=False):
        rows = F.normalize(at_least_float32(torch.cat((first_points, second_points), dim=1)), dim=2)
        logits = rows @ rows.mT / temperature
        places = coordinates.to(rows.dtype)
        usable = valid.repeat(1, 2)
        apart = (torch.cdist(places, places) >= distance).repeat(1, 2, 2)
        itself_or_positive = torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device).repeat(2, 2)
        negative = apart & usable[:, None, :] & ~itself_or_positive
        # A finite lowest value: a row without negatives then has loss and gradient 0 instead of NaN.
        lowest = -torch.finfo(logits.dtype).max / 2
        negatives = logits.masked_fill(~negative, lowest).logsumexp(dim=2)
        positive = (rows * rows.roll(valid.shape[1], dims=1)).sum(dim=2) / temperature
        counted = usable & negative.any(dim=2)
        total = torch.where(counted, F.softplus(negatives - positive), 0).sum()
    return scale_to_ranks(total, counted.sum())
