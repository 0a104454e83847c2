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
_FUSED_ON = ("cpu", "cuda")


class Optimiser:
    """AdamW over the parameters that require a gradient.

    Norm scales, biases and scalars are not decayed. `rate_of` gives each parameter's factor on the learning
    rate by its name; a parameter with factor 0 must not require a gradient. `fused` updates all in one pass,
    where torch can on the parameters' device; results differ by rounding, and saved states do not.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        weight_decay: float,
        rate_of: Callable[[str], float] = lambda _: 1.0,
        fused: bool = True,
    ) -> None:
        self.parameters = {name: value for name, value in network.named_parameters() if value.requires_grad}
        self.fused = fused and all(value.device.type in _FUSED_ON for value in self.parameters.values())
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, value in self.parameters.items():
            decay = weight_decay if value.ndim > 1 else 0.0
            groups.setdefault((rate_of(name), decay), []).append(value)
        self._adamw = torch.optim.AdamW(
            [
                {"params": values, "weight_decay": decay, "rate": rate, "lr": 0.0}
                for (rate, decay), values in groups.items()
            ],
            fused=self.fused or None,  # None: torch's choice of the others
        )

    def clip(self, norm: float, scale: float = 1.0) -> Tensor:
        """Scale the gradients down to `norm` if they are longer. Returns their norm before.

        What is there is taken for `scale` times the gradients, and divided by it first.
        """
        if scale != 1.0:
            found = [value.grad for value in self.parameters.values() if value.grad is not None]
            torch._foreach_mul_(found, 1.0 / scale)
        return nn.utils.clip_grad_norm_(self.parameters.values(), norm)

    def step(self, learning_rate: float) -> None:
        """Update the parameters."""
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate * group["rate"]
        self._adamw.step()

    def skip(self) -> None:
        """Leave the parameters as they are, in a step that is not taken.

        Those that no step has updated yet get the state that their first one would begin with, so that there
        is one to be saved.
        """
        for value in self.parameters.values():
            if value.requires_grad and not self._adamw.state.get(value):
                self._adamw.state[value] = {
                    "step": torch.zeros((), device=self._step_device(value)),
                    "exp_avg": torch.zeros_like(value),
                    "exp_avg_sq": torch.zeros_like(value),
                }

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
                # AdamW counts steps in a float32 whatever the parameter is.
                state[moment] = (
                    saved.to(self._step_device(value), copy=True)
                    if moment == "step"
                    else saved.to(value, copy=True)
                )
            self._adamw.state[value] = state

    def _step_device(self, value: Tensor) -> torch.device:
        """Where AdamW counts a parameter's steps: beside it if it is fused, else on the CPU."""
        return value.device if self.fused else torch.device("cpu")


def learning_rate_at(step: int, *, peak: float, warmup_steps: int, steps: int) -> float:
    """Rate of optimiser step `step` (from 0) of `steps`: linear from near 0 to `peak`, then a cosine to 0."""
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))
