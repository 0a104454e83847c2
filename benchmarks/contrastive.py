"""The contrastive losses that are compared: ours, the textbook's, the peers', and slow references.

Every implementation is a function of this rank's `first` and `second` (n x d, two views of n regions) and the
temperature, and returns what that project's users would call `backward()` on under DDP.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from benchmarks import peers
from hssl_dist import collectives
from hssl_dist.losses.nt_xent import nt_xent

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def textbook(
    first: Float[Tensor, "n d"], second: Float[Tensor, "n d"], temperature: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """NT-Xent of one process as tutorials write it: the whole matrix, its diagonal masked, a cross-entropy.

    In float64 also the reference that the gradients of NT-Xent are held against.
    """
    rows = F.normalize(torch.cat((first, second)), dim=1)
    logits = rows @ rows.T / temperature
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    positive = torch.arange(len(rows), device=rows.device).roll(len(first))
    return F.cross_entropy(logits.masked_fill(itself, -torch.inf), positive)


def image_text(
    first: Float[Tensor, "n d"], second: Float[Tensor, "n d"], temperature: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """CLIP's loss of one process: each view's rows against the other view's only. open_clip's reference."""
    logits = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T / temperature
    own = torch.arange(len(first), device=first.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def _lightly(first: Tensor, second: Tensor, temperature: Tensor) -> Tensor:
    criterion = peers.lightly_loss().NTXentLoss(temperature=temperature.item(), gather_distributed=True)
    loss: Tensor = criterion(first, second)
    return loss


def _open_clip(first: Tensor, second: Tensor, temperature: Tensor) -> Tensor:
    return _clip_loss(first, second, temperature, local_loss=True, gather_with_grad=True)


def _open_clip_default(first: Tensor, second: Tensor, temperature: Tensor) -> Tensor:
    return _clip_loss(first, second, temperature)


def _clip_loss(first: Tensor, second: Tensor, temperature: Tensor, **options: bool) -> Tensor:
    criterion = peers.open_clip_loss().ClipLoss(
        rank=collectives.rank(), world_size=collectives.world_size(), **options
    )
    with warnings.catch_warnings():
        # open_clip gathers with a function that torch has deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        loss: Tensor = criterion(F.normalize(first, dim=1), F.normalize(second, dim=1), 1 / temperature)
    return loss


def _metric_learning(first: Tensor, second: Tensor, temperature: Tensor) -> Tensor:
    return _metric_learning_loss(first, second, temperature, efficient=False)


def _metric_learning_efficient(first: Tensor, second: Tensor, temperature: Tensor) -> Tensor:
    return _metric_learning_loss(first, second, temperature, efficient=True)


def _metric_learning_loss(first: Tensor, second: Tensor, temperature: Tensor, efficient: bool) -> Tensor:
    criterion = peers.metric_learning_losses().NTXentLoss(temperature=temperature.item())
    wrapper = peers.metric_learning_distributed().DistributedLossWrapper(criterion, efficient=efficient)
    region = collectives.rank() * len(first) + torch.arange(len(first))
    loss: Tensor = wrapper(torch.cat((first, second)), region.repeat(2))
    return loss


@dataclass(frozen=True)
class Implementation:
    """One loss and what is known of it."""

    loss: Loss
    reference: Loss
    label: str
    similarities: float
    """Logits that enter the loss, as a multiple of M x M; M = 2n rows over all ranks."""
    memory_power: Literal[1, 2]
    """Its memory grows like this power of M."""
    learns_temperature: bool


IMPLEMENTATIONS = {
    "ours": Implementation(nt_xent, textbook, "hssl_dist nt_xent", 1, 1, True),
    "textbook": Implementation(textbook, textbook, "textbook, one process", 1, 2, True),
    "lightly": Implementation(_lightly, textbook, "lightly NTXentLoss(gather_distributed=True)", 1, 2, False),
    "open_clip": Implementation(
        _open_clip, image_text, "open_clip ClipLoss(local_loss=True, gather_with_grad=True)", 0.5, 2, True
    ),
    "open_clip_default": Implementation(_open_clip_default, image_text, "open_clip ClipLoss()", 0.5, 2, True),
    "metric_learning": Implementation(
        _metric_learning, textbook, "pytorch-metric-learning efficient=False", 1, 2, False
    ),
    "metric_learning_efficient": Implementation(
        _metric_learning_efficient, textbook, "pytorch-metric-learning efficient=True", 1, 2, False
    ),
}


def available(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the implementations whose project is installed."""
    needs = {
        "lightly": "lightly",
        "open_clip": "open_clip_torch",
        "open_clip_default": "open_clip_torch",
        "metric_learning": "pytorch-metric-learning",
        "metric_learning_efficient": "pytorch-metric-learning",
    }
    return tuple(name for name in names if needs.get(name) not in peers.missing())


def two_views(n: int, d: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings of two views of n regions that resemble each other; drawn in float32 whatever `dtype`."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(n, d, generator=generator)
    second = first + 0.7 * torch.randn(n, d, generator=generator)
    return first.to(dtype), second.to(dtype)
