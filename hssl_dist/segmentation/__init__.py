"""From a segmentation network to labels, and from labels to scores."""

from hssl_dist.segmentation.components import WAYS, MeansByWay, best_way, keep_largest
from hssl_dist.segmentation.metrics import DiceMeans, dice, dice_means
from hssl_dist.segmentation.sliding import Windows, logit_slabs, predict

__all__ = [
    "WAYS",
    "DiceMeans",
    "MeansByWay",
    "Windows",
    "best_way",
    "dice",
    "dice_means",
    "keep_largest",
    "logit_slabs",
    "predict",
]
