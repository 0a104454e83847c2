"""AdamW, its parameter groups and its learning-rate schedule; its state by parameter name.

The learning rate is a pure function of the step, so a resumed run cannot jump.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hssl_dist.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class Optimiser:
    """AdamW over the parameters that require a gradient.

    Norm scales, biases and scalars are not decayed. `rate_of` gives each parameter's factor on the learning
    rate by its name; a parameter with factor 0 must not require a gradient.
    """

    def __init__(
        self, network: nn.Module, *, weight_decay: float, rate_of: Callable[[str], float] = lambda _: 1.0
    ) -> None:
        self.parameters = {name: value for name, value in network.named_parameters() if value.requires_grad}
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, value in self.parameters.items():
            decay = weight_decay if value.ndim > 1 else 0.0
            groups.setdefault((rate_of(name), decay), []).append(value)
        self._adamw = torch.optim.AdamW(
            [
                {"params": values, "weight_decay": decay, "rate": rate, "lr": 0.0}
                for (rate, decay), values in groups.items()
            ]
        )

    def clip(self, norm: float) -> Tensor:
        """Scale the gradients down to `norm` if they are longer. Returns their norm before."""
        return nn.utils.clip_grad_norm_(self.parameters.values(), norm)

    def step(self, learning_rate: float) -> None:
        """Update the parameters."""
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate * group["rate"]
        self._adamw.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self._adamw.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts as `<moment>/<parameter>`."""
        return {
            f"{moment}/{name}": state[moment]
            for name, value in self.parameters.items()
            if (state := self._adamw.state.get(value))
            for moment in _MOMENTS
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a saved `state()`. Raises CheckpointError if it is of other parameters.

        Parameters that require no gradient now, being frozen for a while, have none yet.
        """
        moving = {name: value for name, value in self.parameters.items() if value.requires_grad}
        expected = {f"{moment}/{name}" for name in moving for moment in _MOMENTS}
        if tensors.keys() != expected:
            odd = sorted(tensors.keys() ^ expected)
            raise CheckpointError(
                f"the optimiser state does not fit the network: {len(odd)} entries differ, {odd[0]} first"
            )
        for name, value in moving.items():
            state: dict[str, Any] = {}
            for moment in _MOMENTS:
                saved = tensors[f"{moment}/{name}"]
                # AdamW counts steps in a float32 on the CPU whatever the parameter is.
                state[moment] = saved.clone() if moment == "step" else saved.to(value, copy=True)
            self._adamw.state[value] = state


def learning_rate_at(step: int, *, peak: float, warmup_steps: int, steps: int) -> float:
    """Rate of optimiser step `step` (from 0) of `steps`: linear from near 0 to `peak`, then a cosine to 0."""
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))
