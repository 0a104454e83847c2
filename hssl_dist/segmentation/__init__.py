"""From a segmentation network to labels, and from labels to scores."""

from hssl_dist.segmentation.metrics import DiceMeans, dice, dice_means
from hssl_dist.segmentation.sliding import Windows, logit_slabs, predict

__all__ = ["DiceMeans", "Windows", "dice", "dice_means", "logit_slabs", "predict"]
