"""From (seed, step, index) to regions and batches of the store; patient-level splits and label fractions."""

from hssl_dist.sampling.loader import Batch, PretrainingLoader, Regions, rank_slice
from hssl_dist.sampling.schedule import Draw, Schedule, region_shape
from hssl_dist.sampling.splits import Split, label_subset, split_manifest, split_patients
from hssl_dist.sampling.supervised import LabelledBatch, SupervisedLoader

__all__ = [
    "Batch",
    "Draw",
    "LabelledBatch",
    "PretrainingLoader",
    "Regions",
    "Schedule",
    "Split",
    "SupervisedLoader",
    "label_subset",
    "rank_slice",
    "region_shape",
    "split_manifest",
    "split_patients",
]
