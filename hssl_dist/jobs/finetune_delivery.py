"""What is delivered with the weights that validated best: whether only largest components are kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hssl_dist.segmentation import DiceMeans, best_way
from hssl_dist.training.precision import autocast

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from hssl_dist.config.finetune import SupervisedConfig
    from hssl_dist.records import KeepLargest
    from hssl_dist.training.supervised import SupervisedResult
    from hssl_dist.training.validation import Validation


@dataclass(frozen=True, slots=True)
class Delivered:
    """A training's result, and how its predictions are treated and validate then.

    `by_way` has the validation of each way that was looked at.
    """

    result: SupervisedResult
    keep_largest: KeepLargest
    by_way: Mapping[KeepLargest, DiceMeans] = field(default_factory=dict)

    @property
    def validation(self) -> DiceMeans | None:
        """As predictions are delivered; None without a validation."""
        return self.by_way.get(self.keep_largest)

    @property
    def overall(self) -> dict[str, float]:
        """The mean Dice of each way."""
        return {way: means.overall for way, means in self.by_way.items()}

    @property
    def told(self) -> str:
        """`, largest component of the foreground only (0.614 with all)`, or nothing."""
        if self.keep_largest == "never":
            return ""
        what = {"foreground": "the foreground", "class": "each class"}[self.keep_largest]
        before = f" ({self.overall['never']:.3f} with all)" if self.by_way else ""
        return f", largest component of {what} only{before}"


def deliver(
    result: SupervisedResult, network: nn.Module, validation: Validation, config: SupervisedConfig
) -> Delivered:
    """Choose as `config.keep_largest` says, by the validation of `network`, which has the best weights."""
    if result.validation is None:
        return Delivered(result, "never" if config.keep_largest == "auto" else config.keep_largest)
    if config.keep_largest == "never":
        return Delivered(result, "never", {"never": result.validation})
    with autocast(config.precision, validation.device):
        by_way = validation.means_by_way(network)
    way = best_way(by_way) if config.keep_largest == "auto" else config.keep_largest
    return Delivered(result, way, by_way)
