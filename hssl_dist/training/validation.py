"""Scoring a segmentation network on stored cases, whole volumes at a time, on the stored grid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from hssl_dist.errors import ConfigError
from hssl_dist.records import CaseRecord, Shape
from hssl_dist.segmentation import dice, predict

if TYPE_CHECKING:
    from hssl_dist.store import Reader


def score_cases(
    network: nn.Module,
    records: Sequence[CaseRecord],
    reader: Reader,
    classes: Iterable[int],
    patch_size: Shape,
    overlap: float,
    device: torch.device,
) -> Iterator[tuple[CaseRecord, dict[int, float]]]:
    """Dice of each class for one case after the other; one volume is in memory at a time.

    Raises ConfigError for a case without label.
    """
    values = tuple(classes)
    for record in records:
        if not record.labelled:
            raise ConfigError(
                f"case {record.id!r} of dataset {record.dataset!r} has no label to score against"
            )
        background = [intensity.background for intensity in record.intensities]
        prediction = predict(network, reader.image(record), patch_size, overlap, device, background)
        yield record, dice(prediction, reader.label(record), values)
