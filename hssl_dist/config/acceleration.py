"""How fast a training step is and what memory it takes: settings that change a result by rounding alone.

What each does, and by which measurement its default was chosen, is in docs/speed.md. None of them tells one
run from another, so a run may go on with others.
"""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveFloat

from hssl_dist.config.parts import Part


class StepAccelerationConfig(Part):
    """How one process computes a step."""

    compile: bool = False
    """Compile the network with `torch.compile`, for the sizes that a run has; what was compiled is kept on
    disk for later runs. On the CPU it takes a C++ compiler."""
    recompute_stages: NonNegativeInt = 0
    """Finest stages, of encoder and decoder, whose activations are computed again in the backward pass, not
    kept for it: less memory for more time. All stages, if the network has fewer; 0 keeps everything."""
    channels_last: bool = False
    """Lay out volumes and weights with the channels last in memory (`torch.channels_last_3d`)."""
    fused_optimiser: bool = True
    """AdamW in one pass over all weights, where torch has it for the device."""
    keep_freed_memory: bool = True
    """Keep freed memory for the next step, for training on the CPU under glibc: less time, some hundred MiB
    more at the peak. It counts for the whole process."""


class AccelerationConfig(StepAccelerationConfig):
    """How ranks compute a step together."""

    bucket_mb: PositiveFloat = 25.0
    """MiB of gradients that ranks average at once, while the rest of the backward pass goes on."""
    bucket_views: bool = True
    """Gradients lie where ranks average them, not in a copy."""
