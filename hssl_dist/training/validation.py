"""Scoring a segmentation network on stored cases, whole volumes at a time, on the stored grid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from hssl_dist.errors import ConfigError
from hssl_dist.records import CaseRecord, KeepLargest, Shape
from hssl_dist.segmentation import DiceMeans, dice, dice_means, keep_largest, predict

if TYPE_CHECKING:
    from hssl_dist.store import Reader

CaseScores = Mapping[KeepLargest, Mapping[int, float]]


@dataclass(frozen=True, slots=True)
class Validation:
    """The cases to score, and how they are predicted: windows of `patch_size` that share `overlap`.

    The same predictions are scored in each of `ways` to keep the largest component only.
    """

    records: Sequence[CaseRecord]
    reader: Reader
    classes: Iterable[int]
    patch_size: Shape
    overlap: float
    device: torch.device
    ways: Sequence[KeepLargest] = ("never",)

    def means(self, network: nn.Module) -> dict[KeepLargest, DiceMeans]:
        """Mean Dice over the cases, by way. Raises ConfigError for a case without label."""
        found = list(self.scores(network))
        return {way: dice_means(scores[way] for scores in found) for way in self.ways}

    def scores(self, network: nn.Module) -> Iterator[CaseScores]:
        """Dice of each class for one case after the other; one volume is in memory at a time."""
        values = tuple(self.classes)
        for record in self.records:
            if not record.labelled:
                raise ConfigError(
                    f"case {record.id!r} of dataset {record.dataset!r} has no label to score against"
                )
            background = [intensity.background for intensity in record.intensities]
            image = self.reader.image(record)
            found = predict(network, image, self.patch_size, self.overlap, self.device, background)
            label = self.reader.label(record)
            yield {way: dice(keep_largest(found, way), label, values) for way in self.ways}
