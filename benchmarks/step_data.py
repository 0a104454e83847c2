"""The volumes of the step's benchmark: a store for ours, the same values as arrays for the peers' loops."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.loader_data import Prepared, with_arrays, write_volumes
from hssl_dist.config.parts import CacheConfig, StoreConfig
from hssl_dist.config.pretrain import LearningConfig
from hssl_dist.sampling.schedule import region_shape
from hssl_dist.store import Reader, open_reader, read_manifests

if TYPE_CHECKING:
    from hssl_dist.config.pretrain import PretrainConfig
    from hssl_dist.records import Manifest, Shape

DATASETS = ("one", "two", "three")
"""Each a task and a group of its own."""
CASES = 3
_SEED, _LEAST = 11, 32


@dataclass(frozen=True)
class Workload:
    """A folder with a store, its node's cache and the same values as arrays."""

    folder: str

    @property
    def store(self) -> str:
        """The store's root."""
        return f"{self.folder}/store"

    @property
    def cache(self) -> CacheConfig:
        """Decoded volumes of the store, on the same disk."""
        return CacheConfig(folder=f"{self.folder}/cache")

    def arrays(self) -> list[Path]:
        """Files of the values of all volumes, `1 z y x` in float32."""
        return sorted(Path(self.folder, "arrays").rglob("*.npy"))

    def manifests(self) -> dict[str, Manifest]:
        """Of all datasets."""
        return read_manifests(self.store)

    def reader(self) -> Reader:
        """As pretraining opens it."""
        return open_reader(self.store, cache=self.cache)

    def of(self, config: PretrainConfig) -> PretrainConfig:
        """The config, on this store."""
        return config.model_copy(update={"store": StoreConfig(url=self.store), "cache": self.cache})


def learning(config: PretrainConfig) -> dict[str, Any]:
    """What of a config a record tells: all but where it ran."""
    return config.model_dump(mode="json", include=set(LearningConfig.model_fields))


def build_workload(folder: str, config: PretrainConfig, cases: int = CASES) -> Workload:
    """Volumes like CTs, twice as large as the config's regions, in three datasets: store and arrays.

    No side is shorter than SwinUNETR's patches.
    """
    shape: Shape = tuple(max(_LEAST, 2 * side) for side in region_shape(config.sampling))  # type: ignore[assignment]
    for number, dataset in enumerate(DATASETS):
        write_volumes(f"{folder}/store", dataset, shape, cases, _SEED + 100 * number)
    prepared: Prepared = with_arrays(folder)
    return Workload(prepared.folder)
