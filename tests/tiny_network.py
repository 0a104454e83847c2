"""The smallest network that has all parts of a large one: two stages, a decoder, a stride."""

from __future__ import annotations

from hssl_dist.config.network import NetworkConfig

NETWORK = NetworkConfig(
    widths=(4, 8),
    strides=((1, 1, 1), (2, 2, 2)),
    kernels=((1, 3, 3), (3, 3, 3)),
    encoder_blocks=(1, 1),
    decoder_blocks=(1,),
)
