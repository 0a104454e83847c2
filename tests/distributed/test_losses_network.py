"""The pretraining network under DDP: same gradients as one process, no parameter without one."""

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hssl_dist import collectives
from hssl_dist.config.network import NetworkConfig
from hssl_dist.config.pretrain import ObjectiveConfig
from hssl_dist.losses.hierarchy import classification
from hssl_dist.losses.nt_xent import nt_xent
from hssl_dist.losses.restoration import restoration
from hssl_dist.networks.pretraining import PretrainingNetwork, build_pretraining_network
from tests.distributed.ranks import run_ranks

SPLIT = (3, 1)
NETWORK = NetworkConfig(
    widths=(4, 6),
    strides=((1, 1, 1), (1, 2, 2)),
    kernels=((1, 3, 3), (3, 3, 3)),
    encoder_blocks=(1, 1),
    decoder_blocks=(1,),
)
OBJECTIVE = ObjectiveConfig(projection_size=5, learn_temperature=True, depths=(0, 1))


def new_network() -> PretrainingNetwork:
    torch.manual_seed(0)
    network = build_pretraining_network(NETWORK, OBJECTIVE, tasks=3, groups=2).double()
    for name, parameter in network.named_parameters():
        if name.endswith("conv2.norm.weight"):  # they start at 0, and so would gradients of what is below
            nn.init.ones_(parameter)
    return network


def make_images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, sum(SPLIT), 1, 2, 8, 8, generator=generator, dtype=torch.float64)
    return images[0], images[1]


def gradients(
    wrapped: nn.Module, network: PretrainingNetwork, own: slice, stage: str
) -> dict[str, Tensor | None]:
    first, second = (images[own] for images in make_images())
    output = wrapped(torch.cat((first, second)), stage)
    if stage == "encoder":
        targets = torch.tensor([0, 1, 2, 1])[own]
        loss = torch.zeros((), dtype=torch.float64)
        for embedding, tasks, groups in zip(
            output.embeddings, output.task_logits, output.group_logits, strict=True
        ):
            loss = loss + nt_xent(*embedding.chunk(2), network.temperature)
            loss = loss + classification(tasks, targets.repeat(2))
            loss = loss + classification(groups, (targets % 2).repeat(2))
    else:
        mask = torch.cat((first, second)) > 0.5
        loss = restoration(output.restored, torch.cat((second, first)), mask)
        loss = loss + restoration(output.dense, torch.zeros_like(output.dense), mask)
    loss.backward()
    return {name: parameter.grad for name, parameter in network.named_parameters() if parameter.requires_grad}


def gradients_of_a_rank(stage: str, encoder_trainable: bool) -> dict[str, Tensor | None]:
    network = new_network()
    network.set_stage(stage, encoder_trainable)
    start = sum(SPLIT[: collectives.rank()])
    own = slice(start, start + SPLIT[collectives.rank()])
    return gradients(DistributedDataParallel(network), network, own, stage)


def all_stages_of_a_rank() -> list[dict[str, Tensor | None]]:
    return [gradients_of_a_rank("encoder", True)] + [
        gradients_of_a_rank("decoder", trainable) for trainable in (True, False)
    ]


def test_every_trainable_parameter_gets_the_gradient_of_one_process() -> None:
    results = run_ranks(all_stages_of_a_rank, len(SPLIT))
    for i, (stage, encoder_trainable) in enumerate(
        (("encoder", True), ("decoder", True), ("decoder", False))
    ):
        network = new_network()
        network.set_stage(stage, encoder_trainable)
        expected = gradients(network, network, slice(0, sum(SPLIT)), stage)
        assert any(name.startswith("encoder.") for name in expected) == encoder_trainable
        for result in results:
            found = result[i]
            assert found.keys() == expected.keys()
            for name, gradient in expected.items():
                assert gradient is not None, name
                # Convolution biases before a norm have gradient 0 up to rounding: hence the absolute bound.
                torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-13, msg=name)
