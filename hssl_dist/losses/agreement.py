"""What ranks must agree on before they contrast rows: checked together, so that all raise and none waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hssl_dist import collectives
from hssl_dist.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


def agreed_rows(first: Tensor, second: Tensor, temperature: Tensor | float) -> tuple[int, ...]:
    """The rows of `first` on each rank (the ranks' only exchange of sizes).

    Raises on all ranks alike: ConfigError for a temperature that is not positive, TrainingError if some
    rank's two views differ in shape, or the ranks differ in the length of a row or in the temperature.
    """
    shapes = [first.shape[0], first.shape[1], second.shape[0], second.shape[1]]
    sizes = torch.tensor(shapes, dtype=torch.float64, device=first.device)
    degree = torch.as_tensor(temperature, device=first.device).detach().double().reshape(1)
    found = collectives.gather_numbers(torch.cat((sizes, degree)))
    check_temperature(min(numbers[4] for numbers in found))
    for rank, (rows, length, other_rows, other_length, _) in enumerate(found):
        if (rows, length) != (other_rows, other_length):
            raise TrainingError(
                f"rank {rank} has views of {rows:g} x {length:g} and {other_rows:g} x {other_length:g}; "
                "both views of a sample need a row of the same length"
            )
    _same("rows of length", [numbers[1] for numbers in found])
    _same("a temperature of", [numbers[4] for numbers in found])
    return tuple(int(numbers[0]) for numbers in found)


def check_temperature(temperature: Tensor | float) -> None:
    """Raise ConfigError if it is not positive. (The loop names the samples behind a NaN.)"""
    degree = float(temperature.detach() if isinstance(temperature, torch.Tensor) else temperature)
    if degree <= 0:
        raise ConfigError(f"the temperature is {degree:g}; it must be positive: set it to 0.1, say")


def _same(what: str, values: Sequence[float]) -> None:
    for rank, value in enumerate(values):
        if value != values[0] and value == value:  # NaN is no disagreement
            raise TrainingError(
                f"rank 0 has {what} {values[0]:g}, rank {rank} {value:g}; "
                "start all ranks with the same config and code"
            )
