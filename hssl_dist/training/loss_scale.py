"""The factor on a float16 network's loss, without which small gradients would be zero.

float16 ends at 6e-8. The loss is multiplied before the backward pass, and the gradients are divided by the
same number in float32 after it. A factor that is too large shows as a gradient that is not finite where the
losses are: then the step is skipped, on all ranks alike, for what they decide by is of all of them, and the
factor halved. After many steps without that it doubles. Factors are powers of two, which round nothing.

(Micikevicius et al. 2018, Mixed Precision Training, section 3.2; the numbers are those of torch.amp.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_FIRST = 2.0**16
_LEAST, _MOST = 1.0, 2.0**24
_STEADY_STEPS = 2000


@dataclass(frozen=True, slots=True)
class LossScale:
    """The factor, and the steps since it last changed; part of a run's saved state."""

    value: float = _FIRST
    steady_steps: int = 0

    @property
    def can_fall(self) -> bool:
        """Whether a gradient that is not finite may be the factor's fault."""
        return self.value > _LEAST

    def after_overflow(self) -> LossScale:
        """Half of it, for the step after one that was skipped."""
        return LossScale(max(_LEAST, self.value / 2))

    def after_step(self) -> LossScale:
        """The same, or after 2000 steps twice of it."""
        if self.steady_steps + 1 < _STEADY_STEPS:
            return LossScale(self.value, self.steady_steps + 1)
        return LossScale(min(_MOST, 2 * self.value))

    def to_state(self) -> dict[str, float | int]:
        """Plain JSON."""
        return {"value": self.value, "steady_steps": self.steady_steps}

    @classmethod
    def of_state(cls, state: Mapping[str, Any] | None) -> LossScale:
        """What `to_state` gave; the first one for None, of a run that had another precision until now."""
        return cls() if state is None else cls(float(state["value"]), int(state["steady_steps"]))
