"""Networks of ours whose convolutions torch chooses how to take, as on a GPU."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

from torch import nn

from hssl_dist.networks.unet import Convolution

Network = TypeVar("Network", bound=nn.Module)


def with_plain_convolutions(network: Network) -> Network:
    """The same network, without what `Convolution` does for CPUs."""
    for module in network.modules():
        if isinstance(module, Convolution):
            setattr(module, "forward", partial(nn.Conv3d.forward, module))  # noqa: B010
    return network
