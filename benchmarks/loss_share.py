"""The image-level loss's share of a pretraining step on the default network.

Processor time of the loss, forward and backward, at M embeddings, over that of the step: the loss and the
network's encoder stage (encoder, projector, task and group heads), forward and backward, for M views. The
network is timed on fewer views and its time per view multiplied by M: its cost is proportional to the views.
Views, optimiser and data are left out, so the share of a whole step is smaller still.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import torch

from benchmarks.loss_scaling import build_loss_pass
from benchmarks.measuring import CannotRun, measure
from hssl_dist.config.network import NetworkConfig
from hssl_dist.config.pretrain import ObjectiveConfig
from hssl_dist.networks.pretraining import build_pretraining_network

if TYPE_CHECKING:
    from benchmarks.measuring import Work

PATCH_SIZE = (16, 48, 48)
ROWS, VIEWS = 4096, 8


@dataclass(frozen=True)
class LossShare:
    """Medians of processor seconds, one thread."""

    rows: int
    patch_size: tuple[int, int, int]
    loss_cpu_s: float
    timed_views: int
    network_cpu_s_per_view: float
    network_cpu_s: float
    """Extrapolated from `timed_views` to `rows` views."""
    share: float


def build_network_pass(views: int) -> Work:
    """One forward and backward pass of the default network's encoder stage, warmed up."""
    torch.manual_seed(0)
    network = build_pretraining_network(NetworkConfig(), ObjectiveConfig(), tasks=3, groups=2)
    network.set_stage("encoder")
    images = torch.randn(views, 1, *PATCH_SIZE)

    def one_pass() -> None:
        network.zero_grad()
        output = network(images, "encoder")
        heads = (*output.embeddings, *output.task_logits, *output.group_logits)
        torch.cat([x.flatten() for x in heads]).square().sum().backward()

    one_pass()
    return one_pass


def measure_share(repetitions: int) -> LossShare:
    """The loss at M = ROWS against the network at VIEWS views, in turns."""
    losses, networks = [], []
    for _ in range(repetitions):
        for found, outcome in (
            (losses, measure(build_loss_pass, "ours", ROWS)),
            (networks, measure(build_network_pass, VIEWS)),
        ):
            if isinstance(outcome, CannotRun):
                raise RuntimeError(outcome.reason)
            found.append(outcome.cpu_s)
    loss_cpu_s, per_view = median(losses), median(networks) / VIEWS
    network_cpu_s = per_view * ROWS
    return LossShare(
        ROWS,
        PATCH_SIZE,
        loss_cpu_s,
        VIEWS,
        per_view,
        network_cpu_s,
        loss_cpu_s / (loss_cpu_s + network_cpu_s),
    )
