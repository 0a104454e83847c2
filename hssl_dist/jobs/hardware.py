"""What a job computes on."""

from __future__ import annotations

import torch


def use_hardware(threads: int | None) -> torch.device:
    """The GPU if this process has one, else the CPU; `threads` limits torch's CPU threads if given."""
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
