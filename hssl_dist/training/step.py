"""The gradient of one step, exact for any split of the global batch over ranks and micro-batches.

With all of a rank's share at once: one forward pass, the loss, one backward pass. In micro-batches:

    1. each goes through the network without a graph; what the coupled terms need is kept (if there are any)
    2. the loss of all that was kept, over all ranks, and its gradient for each entry of it
    3. each goes through the network again, now with a graph, and takes its part of that gradient, and those
       of its separate terms, back to the weights; DDP adds up the ranks after the last one

So activations are those of one micro-batch, whatever the global batch, and the gradient is that of all at
once. The second pass must repeat the first: images come from the samples' seeds alone, norms look at one
sample, and a network that draws random numbers is refused.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hssl_dist import collectives
from hssl_dist.errors import TrainingError
from hssl_dist.training.decoder_terms import DECODER
from hssl_dist.training.encoder_terms import ENCODER
from hssl_dist.training.health import finite_samples
from hssl_dist.training.precision import autocast

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from hssl_dist.config.pretrain import PretrainConfig
    from hssl_dist.networks.pretraining import PretrainingNetwork, PretrainingOutput, Stage
    from hssl_dist.training.objective import Kept, Prepared, Samples, StageObjective, Terms

_STAGES: dict[Stage, StageObjective] = {"encoder": ENCODER, "decoder": DECODER}


@dataclass(frozen=True, slots=True)
class StepLoss:
    """Total and terms, before weighting, as this rank's shares, and what was kept of the network's output.

    In the encoder stage `kept` has, for each depth and both views, `embedding`, the logits of `task` and
    `group`, and the `pooled` features.
    """

    total: Float[Tensor, ""]
    terms: Terms
    kept: Kept


def backward(
    stage: Stage,
    samples: Samples,
    network: PretrainingNetwork,
    wrapped: nn.Module,
    config: PretrainConfig,
    scale: float = 1.0,
) -> StepLoss:
    """Leave the gradient of the global batch's loss in the weights' `grad`, which must be empty.

    `wrapped` is the network or its DDP wrapper. What goes back through it, and so what it leaves, is `scale`
    times the gradient (see `loss_scale`). Raises TrainingError if micro-batches cannot be replayed.
    """
    objective, parts = _STAGES[stage], samples.split(config.micro_batch)
    weights = objective.weights(config.objective)
    whole = _first_look(stage, parts[0], wrapped, config) if _all_at_once(config) else None
    if whole is not None:
        seen = [(whole.prepared.counts, whole.kept)]
    else:
        seen = [_glance(stage, part, network, config) for part in parts]
    counts = _summed([found for found, _ in seen])
    kept = _leaves([found for _, found in seen])
    temperature = network.temperature.detach().requires_grad_(network.temperature.requires_grad)
    terms = dict(objective.coupled(kept, samples, temperature, config.objective))
    if terms:
        _weighted(terms, weights).backward()  # type: ignore[no-untyped-call]
    start = 0
    for part in parts:
        stop, last = start + len(part.seeds), part is parts[-1]
        with nullcontext() if last else _without_sync(wrapped):
            look = whole or (_first_look if part is parts[0] else _look)(stage, part, wrapped, config)
            roots = _roots(look.kept, kept, slice(start, stop))
            separate = objective.separate(look.output, look.prepared, counts, config.objective)
            if separate:
                own = _weighted(separate, weights)
                roots.append((own, torch.ones_like(own)))
            if last and temperature.grad is not None:
                roots.append((network.temperature, temperature.grad))
            gradients = [gradient if scale == 1.0 else scale * gradient for _, gradient in roots]
            with collectives.joined("averaging the gradients") if last else nullcontext():
                torch.autograd.backward([root for root, _ in roots], gradients)
        for name, term in separate.items():
            terms[name] = terms[name] + term.detach() if name in terms else term.detach()
        start = stop
    terms = {name: term.detach() for name, term in terms.items()}
    found = {name: tuple(x.detach() for x in depths) for name, depths in kept.items()}
    return StepLoss(_weighted(terms, weights), terms, found)


def finite_outputs(
    stage: Stage, samples: Samples, network: PretrainingNetwork, config: PretrainConfig
) -> Bool[Tensor, " b"]:
    """For which samples all of the network's outputs are finite, computed again with its present weights."""
    finite = []
    for part in samples.split(config.micro_batch):
        with torch.no_grad():
            output = _look(stage, part, network, config).output
        tensors = [*output.embeddings, *output.task_logits, *output.group_logits]
        tensors += [x for x in (output.dense, output.restored) if x is not None]
        finite.append(finite_samples(tensors, len(part.seeds)))
    return torch.cat(finite)


def _all_at_once(config: PretrainConfig) -> bool:
    """Whether every rank's share is one micro-batch.

    All ranks answer alike, whatever their own share: DDP's forward pass has collectives of its own, so it
    must come at the same place on all.
    """
    largest_share = -(-config.global_batch // collectives.world_size())
    return config.micro_batch is None or config.micro_batch >= largest_share


@dataclass(frozen=True, slots=True)
class _Look:
    """One micro-batch and what the network says of it."""

    prepared: Prepared
    output: PretrainingOutput
    kept: Kept


def _first_look(stage: Stage, part: Samples, wrapped: nn.Module, config: PretrainConfig) -> _Look:
    """The first one with a graph, in which DDP may settle how it will average the gradients."""
    with collectives.joined("preparing to average the gradients"):
        return _look(stage, part, wrapped, config)


def _look(stage: Stage, part: Samples, module: nn.Module, config: PretrainConfig) -> _Look:
    weight = next(module.parameters())
    prepared = _STAGES[stage].prepare(part.on(weight.device), config)
    with autocast(config.precision, weight.device):
        output = module(prepared.images.to(weight.dtype), stage)
    return _Look(prepared, output, _STAGES[stage].kept(output, prepared, config))


def _glance(
    stage: Stage, part: Samples, network: PretrainingNetwork, config: PretrainConfig
) -> tuple[Mapping[str, Tensor], Kept]:
    """What a micro-batch's first pass is for: its counts and what is kept of it, without a graph."""
    device = next(network.parameters()).device
    if not _STAGES[stage].keeps(config.objective):
        return _STAGES[stage].prepare(part.on(device), config).counts, {}
    before = _random_state(device)
    with torch.no_grad():
        look = _look(stage, part, network, config)
    if before != _random_state(device):
        raise TrainingError(
            "the network draws random numbers, so its forward pass cannot be repeated for micro-batches; "
            "take out what is random (such as dropout), or leave micro_batch out"
        )
    return look.prepared.counts, look.kept


def _random_state(device: torch.device) -> bytes:
    """Of the device's generator; the host keeps it, also CUDA's."""
    state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    return state.numpy().tobytes()


def _summed(counts: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """The counts of all micro-batches of all ranks."""
    return {
        name: collectives.all_reduce_sum(torch.stack([count[name] for count in counts]).sum())
        for name in counts[0]
    }


def _leaves(kept: Sequence[Kept]) -> Kept:
    """What was kept of all micro-batches of this rank, as the leaves of a graph of its own."""
    return {
        name: tuple(
            _leaf(torch.cat([part.detach() for part in parts], dim=1))
            for parts in zip(*(part[name] for part in kept), strict=True)
        )
        for name in kept[0]
    }


def _leaf(x: Tensor) -> Tensor:
    return x.requires_grad_() if x.is_floating_point() else x


def _roots(part: Kept, leaves: Kept, rows: slice) -> list[tuple[Tensor, Tensor]]:
    """What was kept of a micro-batch, with the gradient of the coupled terms for it."""
    return [
        (x, leaf.grad[:, rows])
        for name, depths in leaves.items()
        for x, leaf in zip(part[name], depths, strict=True)
        if leaf.grad is not None
    ]


def _without_sync(wrapped: nn.Module) -> AbstractContextManager[None]:
    if isinstance(wrapped, DistributedDataParallel):
        return wrapped.no_sync()
    return nullcontext()


def _weighted(terms: Terms, weights: Mapping[str, float]) -> Tensor:
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()
