"""A step that all ranks refuse: something of it is not finite, and the weights stay as they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import torch

from hssl_dist.config.pretrain import PretrainConfig
from hssl_dist.errors import NonFiniteError
from hssl_dist.networks.pretraining import PretrainingNetwork, Stage
from hssl_dist.sampling.loader import Batch
from hssl_dist.sampling.schedule import Schedule
from hssl_dist.training.health import finite_samples
from hssl_dist.training.not_finite import NotFinite, Reason, find_samples, first_few, save_samples
from hssl_dist.training.objective import Samples
from hssl_dist.training.precision import resolved
from hssl_dist.training.step import finite_outputs

_NAMED_SAMPLES = 8


def refuse(
    stage: Stage,
    batch: Batch,
    samples: Samples,
    values: Mapping[str, float],
    network: PretrainingNetwork,
    config: PretrainConfig,
    schedule: Schedule,
    run_folder: str | None,
) -> NoReturn:
    """Raise NonFiniteError on all ranks, naming the samples: bad regions, else bad outputs, else all.

    `values` are the step's losses and the norm of its gradient. This rank's samples are saved in
    `run_folder`, if there is one (see `not_finite`).
    """
    checks: dict[Reason, torch.Tensor] = {
        "region": finite_samples([samples.regions.values()], len(batch.indices)),
        "output": finite_outputs(stage, samples, network, config),
    }
    reason, found = find_samples(checks, samples.numbers)
    records = [schedule.draw(batch.step, index).record for index in found]
    names = list(dict.fromkeys(f"{record.dataset}/{record.id}" for record in records))
    more = f" and {len(names) - _NAMED_SAMPLES} more" if len(names) > _NAMED_SAMPLES else ""
    terms = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    kept = first_few(found, batch.regions.numbers[0].nbytes)
    own = [_sample(stage, batch, index, reason, schedule) for index in kept if index in batch.indices]
    device = samples.numbers.device
    saved = save_samples(run_folder, batch.step, own, values, device)
    half = resolved(config.precision, device) == "float16" and reason != "region"
    remedy = ", or set precision to float32: float16 ends at 65504" if half else ""
    raise NonFiniteError(
        f"step {batch.step}: not finite: {terms}; with samples of "
        f"{', '.join(names[:_NAMED_SAMPLES])}{more}; the weights are as before the step: look at these "
        f"cases, or lower the learning rate{remedy}{saved}"
    )


def _sample(stage: Stage, batch: Batch, index: int, reason: Reason, schedule: Schedule) -> NotFinite:
    """One of this rank's samples, as it is saved."""
    place = batch.indices.index(index)
    draw = schedule.draw(batch.step, index)
    return NotFinite(
        index=index,
        seed=batch.seeds[place],
        reason=reason,
        record=draw.record,
        regions=(draw.region,),
        tensors=batch.regions[place : place + 1].tensors(),
        facts={"stage": stage},
    )
