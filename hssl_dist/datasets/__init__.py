"""From a challenge's folder to `Case`s, one file per layout behind one contract. No image is read here."""

from hssl_dist.datasets.contract import Dataset
from hssl_dist.datasets.discovery import LAYOUTS, dataset_root, discover

__all__ = ["LAYOUTS", "Dataset", "dataset_root", "discover"]
