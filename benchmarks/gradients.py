"""Whether the gradient that DDP hands the optimiser is that of one process on the whole batch.

A linear layer under DDP embeds each rank's part of the batch; the reference is the same layer in float64, in
one process, with the dense loss. The error is max |g - g_ref| / max |g_ref|, over the layer's weights and,
where it is learnt, the logarithm of the temperature; the fitted scale is <g, g_ref> / <g_ref, g_ref>.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.contrastive import IMPLEMENTATIONS, available, two_views
from hssl_dist import collectives
from tests.distributed.ranks import run_ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.contrastive import Loss

REGIONS, FEATURES, EMBEDDING_SIZE, LOG_TEMPERATURE = 60, 64, 128, -1.6
EQUAL_SPLITS = ((60,), (30, 30), (20, 20, 20), (15, 15, 15, 15))
RAGGED_SPLITS = ((41, 19), (31, 20, 9), (24, 18, 11, 7))
BOUNDS = {"float64": 1e-12, "float32": 1e-6}
PEERS = ("lightly", "open_clip", "open_clip_default", "metric_learning", "metric_learning_efficient")
MUST_FAIL = ("open_clip_default", "metric_learning_efficient")
RAGGED_TIMEOUT_S = 20.0

GradientErrors = dict[str, float | None]


@dataclass(frozen=True)
class GradientCheck:
    """One implementation on one split; the errors are the worst over the ranks."""

    implementation: str
    dtype: str
    split: tuple[int, ...]
    weight_error: float | None
    scale: float | None
    temperature_error: float | None
    """None where the temperature is no parameter."""
    failure: str | None
    """Why there is no gradient; then the errors are None."""
    micro_batch: int | None = None
    """Regions that pass through the network at once; None for a rank's all."""

    @property
    def exact(self) -> bool:
        """Within the bound of its precision."""
        errors = [error for error in (self.weight_error, self.temperature_error) if error is not None]
        return self.failure is None and max(errors) <= BOUNDS[self.dtype]


class _Embedder(nn.Module):
    """A small network whose temperature is a parameter too."""

    def __init__(self, dtype: torch.dtype, learn_temperature: bool) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.linear = nn.Linear(FEATURES, EMBEDDING_SIZE)
        self.log_temperature = nn.Parameter(torch.tensor(LOG_TEMPERATURE), requires_grad=learn_temperature)
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def check_gradients(split: tuple[int, ...], names: Sequence[str]) -> list[GradientCheck]:
    """Check implementations in both precisions on `len(split)` new ranks with `split[r]` regions each."""
    by_rank = run_ranks(_errors_of_a_rank, len(split), split, tuple(names))
    checks = []
    for name in names:
        for dtype in BOUNDS:
            ranks = [errors[name, dtype] for errors in by_rank]
            checks.append(
                GradientCheck(
                    name,
                    dtype,
                    split,
                    max(rank["weight"] for rank in ranks),
                    ranks[0]["scale"],
                    max(rank["temperature"] for rank in ranks)
                    if IMPLEMENTATIONS[name].learns_temperature
                    else None,
                    None,
                )
            )
    return checks


def check_ragged_peer(split: tuple[int, ...], name: str) -> GradientCheck:
    """The check of one peer on ragged ranks in float64, where it may well end its processes or hang."""
    try:
        results = run_ranks(_errors_of_a_rank, len(split), split, (name,), timeout_s=RAGGED_TIMEOUT_S)
    except TimeoutError:
        return GradientCheck(name, "float64", split, None, None, None, f"hangs ({RAGGED_TIMEOUT_S:g} s)")
    except AssertionError as error:
        if "gloo" not in str(error) and "ended without a result" not in str(error):
            raise
        return GradientCheck(name, "float64", split, None, None, None, "gloo aborts its processes")
    worst = max((errors[name, "float64"] for errors in results), key=lambda errors: errors["weight"])
    temperature = worst["temperature"] if IMPLEMENTATIONS[name].learns_temperature else None
    return GradientCheck(name, "float64", split, worst["weight"], worst["scale"], temperature, None)


def check_all(quick: bool) -> list[GradientCheck]:
    """All splits: ours on each, the peers on the equal ones, and on one ragged split to see what happens."""
    largest = 2 if quick else max(map(len, EQUAL_SPLITS))
    installed = available(PEERS)
    checks = []
    for split in EQUAL_SPLITS:
        if len(split) <= largest:
            checks += check_gradients(split, ("ours", *installed))
    for split in RAGGED_SPLITS:
        if len(split) <= largest:
            checks += check_gradients(split, ("ours",))
    if not quick:
        checks += [check_ragged_peer(RAGGED_SPLITS[0], name) for name in installed]
    return checks


def _errors_of_a_rank(
    split: tuple[int, ...], names: tuple[str, ...]
) -> dict[tuple[str, str], dict[str, float]]:
    own = slice(sum(split[: collectives.rank()]), sum(split[: collectives.rank() + 1]))
    errors = {}
    for name in names:
        implementation = IMPLEMENTATIONS[name]
        expected = _gradients(_embedder("float64", True), implementation.reference, slice(None))
        for dtype in BOUNDS:
            module = _embedder(dtype, implementation.learns_temperature)
            found = _gradients(module, implementation.loss, own)
            errors[name, dtype] = {
                "weight": relative_error(found[0], expected[0]),
                "scale": float((found[0].double() * expected[0]).sum() / expected[0].square().sum()),
                "temperature": relative_error(found[1], expected[1]),
            }
    return errors


def _embedder(dtype: str, learn_temperature: bool) -> _Embedder:
    return _Embedder(getattr(torch, dtype), learn_temperature)


def _gradients(module: _Embedder, loss_of: Loss, own: slice) -> tuple[Tensor, Tensor]:
    """Of the weights and of the temperature's logarithm; on all rows in one process, or DDP's on its own."""
    alone = own == slice(None)
    net = module if alone else DistributedDataParallel(module)
    first, second = two_views(REGIONS, FEATURES, module.linear.weight.dtype)
    rows = net(torch.cat((first[own], second[own])))
    loss_of(*rows.chunk(2), module.log_temperature.exp()).backward()
    weight, temperature = module.linear.weight.grad, module.log_temperature.grad
    assert weight is not None
    return weight, torch.zeros(()) if temperature is None else temperature


def relative_error(found: Tensor, expected: Tensor) -> float:
    """max |found - expected| / max |expected|."""
    return float((found.double() - expected).abs().max() / expected.abs().max())
