"""What a network costs, counted and not measured: operations and memory of one sample, on empty tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.plain_convolutions import with_plain_convolutions
from hssl_dist.networks.pretraining import Stage, build_pretraining_network

if TYPE_CHECKING:
    from hssl_dist.config.pretrain import PretrainConfig

_VIEWS = 2


@dataclass(frozen=True)
class SampleCost:
    """Of one sample, which is two views; `parameters` are those that the stage trains."""

    flops: float
    """Convolutions and matrix products, forward and backward; a multiplication and an addition are two."""
    kept_bytes: float
    """What autograd keeps for the backward pass, every storage once."""
    parameters: int


def sample_cost(config: PretrainConfig, stage: Stage, tasks: int = 3, groups: int = 3) -> SampleCost:
    """The network's own, forward and backward, in the config's precision, without copies that CPUs make."""
    kept: dict[int, tuple[Any, int]] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        kept[storage._cdata] = (storage, storage.nbytes())
        return x

    with FakeTensorMode():
        network = with_plain_convolutions(
            build_pretraining_network(config.network, config.objective, tasks, groups)
        )
        network.set_stage(stage, encoder_trainable=getattr(config, stage).encoder_rate > 0)
        weights = {p.untyped_storage()._cdata for p in network.parameters()}
        images = torch.empty(_VIEWS, 1, *config.sampling.patch_size)
        lower = config.precision == "bfloat16"
        with (
            FlopCounterMode(display=False) as counter,
            torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
        ):
            with torch.autocast("cpu", torch.bfloat16, enabled=lower):
                output = network(images, stage)
            said = [*output.embeddings, *output.task_logits, *output.group_logits]
            said += [x for x in (output.dense, output.restored) if x is not None]
            torch.autograd.backward(said, [torch.empty_like(x) for x in said])
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    size = sum(nbytes for number, (_, nbytes) in kept.items() if number not in weights)
    return SampleCost(float(counter.get_total_flops()), float(size), trained)
