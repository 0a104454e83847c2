"""Samples that a loss or a gradient was not finite with, saved for whoever looks for the reason.

    <run>/not-finite/
      step-00000012/              the step that was refused, counted from 0
        sample-00003.safetensors  a sample as the loader gave it: its regions, and a label patch with labels
        sample-00003.json         which it is: record, regions, seed; the reason, and the losses of the step

Sample 3 is the one of index 3 in the global batch. The voxels are patients' data: they go nowhere but into
the run's folder. Nothing is pickled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from safetensors import torch as safetensors_torch
from torch import Tensor

from hssl_dist import collectives, files
from hssl_dist.errors import HsslError
from hssl_dist.records import CaseRecord, Region

MOST_SAMPLES, MOST_BYTES = 8, 256 << 20

Reason = Literal["region", "output", "unknown"]
"""What of a sample is not finite: its region, else the network's output for it; unknown, all are taken."""


@dataclass(frozen=True, slots=True)
class NotFinite:
    """A sample: its index in the global batch and its seed, what was read of which case, and what to save."""

    index: int
    seed: int
    reason: Reason
    record: CaseRecord
    regions: tuple[Region, ...]
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)


def find_samples(
    checks: Mapping[Reason, Bool[Tensor, " b"]], indices: Int[Tensor, " b"]
) -> tuple[Reason, list[int]]:
    """Indices, sorted, of the samples of all ranks that the first check finds that finds any; else of all.

    A check says of this rank's samples, which have these indices, whether they are finite.
    """
    for reason, finite in checks.items():
        found = collectives.gather_rows(indices[~finite.to(indices.device)]).rows.tolist()
        if found:
            return reason, sorted(found)
    return "unknown", sorted(collectives.gather_rows(indices).rows.tolist())


def first_few(indices: Sequence[int], size_bytes: int) -> Sequence[int]:
    """As many as are saved over all ranks: 8, fewer if so many take more than 256 MiB, at least 1."""
    return indices[: max(1, min(MOST_SAMPLES, MOST_BYTES // max(1, size_bytes)))]


def save_samples(
    run_folder: str | None,
    step: int,
    samples: Sequence[NotFinite],
    values: Mapping[str, float],
    device: torch.device,
) -> str:
    """Save this rank's samples; all ranks call it, and get the same words about it to end an error with.

    `values` are the step's losses. It does not raise if the storage refuses: the error is more important.
    """
    if run_folder is None:
        return ""
    folder = files.join(run_folder, "not-finite", f"step-{step:08d}")
    refused = 0
    for sample in samples:
        try:
            _save(folder, step, sample, values)
        except (OSError, HsslError):
            refused = 1
    if collectives.all_reduce_sum(torch.tensor([refused], device=device)).item():
        return f"; not all samples could be saved in {files.shown(folder)}"
    return f"; samples are saved in {files.shown(folder)}"


def _save(folder: str, step: int, sample: NotFinite, values: Mapping[str, float]) -> None:
    name = files.join(folder, f"sample-{sample.index:05d}")
    tensors = {key: tensor.cpu().contiguous().clone() for key, tensor in sample.tensors.items()}
    described = {
        "step": step,
        "index": sample.index,
        "seed": sample.seed,
        "reason": sample.reason,
        "regions": [asdict(region) for region in sample.regions],
        "record": sample.record.model_dump(mode="json"),
        # JSON has no NaN and no infinity.
        "values": {key: value if math.isfinite(value) else str(value) for key, value in values.items()},
        **sample.facts,
    }
    files.write(f"{name}.safetensors", safetensors_torch.save(tensors))
    files.write(f"{name}.json", json.dumps(described, indent=2, sort_keys=True).encode() + b"\n")
