"""What is delivered with the weights that validated best: whether only largest components are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hssl_dist.config.finetune import KeepLargestWanted
from hssl_dist.records import KeepLargest
from hssl_dist.segmentation import WAYS, DiceMeans, MeansByWay, best_way

if TYPE_CHECKING:
    from hssl_dist.training.supervised import SupervisedResult


@dataclass(frozen=True, slots=True)
class Delivered:
    """A training's result, and how its predictions are treated and validate then."""

    result: SupervisedResult
    keep_largest: KeepLargest

    @property
    def by_way(self) -> MeansByWay:
        """The validation of each way that was looked at."""
        return self.result.validation or {}

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


def ways(wanted: KeepLargestWanted) -> Sequence[KeepLargest]:
    """What validations look at, so that one of them can be delivered."""
    return WAYS if wanted == "auto" else tuple(dict.fromkeys(("never", wanted)))


def deliver(result: SupervisedResult, wanted: KeepLargestWanted) -> Delivered:
    """The way that is wanted; for `auto` the one that validated best, and `never` without a validation."""
    if wanted != "auto":
        return Delivered(result, wanted)
    return Delivered(result, "never" if result.validation is None else best_way(result.validation))
