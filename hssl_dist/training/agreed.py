"""What all ranks know of a step before its weights change: one sum over ranks, one transfer to the host.

It is the only time in a step that the host waits for the device: whether gradients are finite decides what is
done next, so nothing can be said earlier, and all else that the host needs travels with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from hssl_dist import collectives

NORM = "gradient_norm"


@dataclass(frozen=True, slots=True)
class Agreed:
    """Means of the metrics over the ranks, what any rank was asked, and the samples of all."""

    values: dict[str, float]
    stop: bool
    look: bool
    samples: int
    digest: int

    @property
    def finite(self) -> bool:
        """Whether losses and gradients are."""
        return all(map(math.isfinite, self.values.values()))

    @property
    def overflow(self) -> bool:
        """Whether the gradients are not, though the losses are."""
        losses = (value for name, value in self.values.items() if name != NORM)
        return not math.isfinite(self.values[NORM]) and all(map(math.isfinite, losses))


def agree(
    metrics: Mapping[str, Float[Tensor, ""]], *, stop: bool, look: bool, samples: int, digest: int
) -> Agreed:
    """All ranks call it with the same names, among them that of the gradients' norm."""
    own = torch.stack([value.detach().double() for value in metrics.values()])
    rest = torch.tensor((stop, look, samples, digest), dtype=own.dtype).to(own.device, non_blocking=True)
    *sums, stops, looks, count, total = on_host(collectives.all_reduce_sum(torch.cat((own, rest))))
    means = {name: value / collectives.world_size() for name, value in zip(metrics, sums, strict=True)}
    return Agreed(means, stops > 0, looks > 0, samples=int(count), digest=int(total))


def on_host(numbers: Shaped[Tensor, " n"]) -> list[float]:
    """The numbers, once the device has them; it says so by an event, and nothing else is waited for."""
    if numbers.device.type != "cuda":
        return _listed(numbers)
    here = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
    here.copy_(numbers, non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()
    done.synchronize()
    return _listed(here)


def _listed(numbers: Tensor) -> list[float]:
    found: list[float] = numbers.tolist()
    return found
