"""Batched views on the device, with voxel correspondences; all randomness of a sample comes from its seed."""

from hssl_dist.augment.correspondence import Points, matching_points, sample_points
from hssl_dist.augment.corruption import mask_blocks
from hssl_dist.augment.seeds import sample_seed
from hssl_dist.augment.supervised import augment_labelled
from hssl_dist.augment.views import Views, two_views

__all__ = [
    "Points",
    "Views",
    "augment_labelled",
    "mask_blocks",
    "matching_points",
    "sample_points",
    "sample_seed",
    "two_views",
]
