"""The peers of the loader's benchmark: MONAI, nnU-Net and zarr-python, through their own installed code.

Each gives the values of the same patches; how a peer comes by the patches' positions is the only thing that
is replaced in it: the schedule's list stands where its random numbers would.

MONAI's "Fast Model Training Guide" (project-monai/tutorials, acceleration) recommends `CacheDataset` for sets
that fit the memory, with `copy_cache=False` where random transforms don't write to what is cached, no
tracking of metadata, and `ThreadDataLoader` with `num_workers=0` because worker processes only add copies;
`PersistentDataset` for sets that don't fit. Worker processes are measured beside it, and for the persistent
one several crops per volume loaded (`RandSpatialCropSamplesd`), without which it would load a volume a patch.

nnU-Net 2.8 stores a case in `<case>.b2nd`, float32 `c z y x`, blosc2 with LZ4HC level 5, in blocks and chunks
by its `comp_blosc2_params` for the patch size; opens the file anew, memory-mapped, with one thread, at every
read; and has worker processes (`NonDetMultiThreadedAugmenter`) read batches, at least six of them ahead. Its
label and property files are written but not read here, as no other arm reads labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.loader_data import Draws, Patch, Prepared
from hssl_dist.sampling.prefetch import read_ahead

Batch = tuple[tuple[Patch, ...], np.ndarray[Any, Any]]
Delivery = Generator[Batch]
Opened = tuple[Delivery, Callable[[], dict[str, int]]]

CROPS_PER_LOAD = 4
WORKERS = 2


# ------------------------------------------------------------------------------------------------------ MONAI


def cache_dataset(prepared: Prepared, draws: Draws) -> Opened:
    """`CacheDataset` with `ThreadDataLoader`, no workers: what its guide recommends."""
    return _monai(prepared, draws, persistent=False, workers=0, crops=1), dict


def cache_dataset_samples(prepared: Prepared, draws: Draws) -> Opened:
    """The same, several crops at each visit of a volume."""
    return _monai(prepared, draws, persistent=False, workers=0, crops=CROPS_PER_LOAD), dict


def cache_dataset_workers(prepared: Prepared, draws: Draws) -> Opened:
    """`CacheDataset` with worker processes."""
    return _monai(prepared, draws, persistent=False, workers=WORKERS, crops=1), dict


def persistent_dataset(prepared: Prepared, draws: Draws) -> Opened:
    """`PersistentDataset` with worker processes, a crop at each visit of a volume."""
    return _monai(prepared, draws, persistent=True, workers=WORKERS, crops=1), dict


def persistent_dataset_samples(prepared: Prepared, draws: Draws) -> Opened:
    """The same, several crops at each visit."""
    return _monai(prepared, draws, persistent=True, workers=WORKERS, crops=CROPS_PER_LOAD), dict


def _monai(prepared: Prepared, draws: Draws, persistent: bool, workers: int, crops: int) -> Delivery:
    from monai.data import CacheDataset, DataLoader, PersistentDataset, ThreadDataLoader, set_track_meta
    from monai.transforms import Compose, LoadImaged, RandSpatialCropSamplesd

    set_track_meta(False)
    crop = RandSpatialCropSamplesd("image", draws.shape, num_samples=crops)
    crop.cropper.cropper = cropper = _given_crop(draws)
    # The arrays are prepared volumes, `1 z y x`: nothing is left to do but to load them.
    load = LoadImaged("image", reader="NumpyReader", image_only=True)
    files = [{"image": str(prepared.array(case))} for case in prepared.cases]
    transform = Compose([load, crop])
    dataset: Any
    if persistent:
        dataset = PersistentDataset(files, transform, cache_dir=Path(prepared.folder, "persistent"))
    else:
        dataset = CacheDataset(files, transform, num_workers=WORKERS, copy_cache=False, progress=False)
    visits = _visits(draws, crops)

    class Visits(torch.utils.data.Dataset[Any]):
        """A dataset whose item is a visit of a volume: the number of crops and where they are."""

        def __getitem__(self, number: int) -> Any:
            patches = visits[number]
            crop.cropper.num_samples = len(patches)
            cropper.starts = [patch.start for patch in patches]
            return dataset[patches[0].case]

        def __len__(self) -> int:
            return len(visits)

    def collate(items: list[Any]) -> torch.Tensor:
        return torch.stack([sample["image"] for item in items for sample in item])

    numbers = _Endless(max(1, draws.batch // crops), len(visits))
    kind = DataLoader if workers else ThreadDataLoader
    loader = kind(Visits(), num_workers=workers, batch_sampler=numbers, collate_fn=collate)
    for batch, images in zip(numbers, loader, strict=False):
        yield tuple(patch for number in batch for patch in visits[number]), images[:, 0].numpy()


class _Endless(torch.utils.data.Sampler[list[int]]):
    """Batches of consecutive numbers, round and round."""

    def __init__(self, size: int, count: int) -> None:
        self._size, self._count = size, count

    def __iter__(self) -> Iterator[list[int]]:
        numbers = itertools.cycle(range(self._count))
        while True:
            yield list(itertools.islice(numbers, self._size))


def _given_crop(draws: Draws) -> Any:
    """MONAI's random crop, at given places instead of random ones."""
    from monai.transforms import RandSpatialCrop

    class GivenCrop(RandSpatialCrop):
        starts: list[tuple[int, int, int]]

        def randomize(self, img_size: Any) -> None:  # noqa: ARG002  (MONAI's signature)
            start = self.starts.pop(0)
            self._size = draws.shape
            self._slices = tuple(slice(a, a + size) for a, size in zip(start, draws.shape, strict=True))

    return GivenCrop(draws.shape)


def _visits(draws: Draws, crops: int) -> list[tuple[Patch, ...]]:
    """The patches, those of a volume in groups of up to `crops`, in the order of the groups' first ones."""
    groups: list[list[Patch]] = []
    filling: dict[int, list[Patch]] = {}
    for patch in draws.patches:
        group = filling.get(patch.case)
        if group is None or len(group) == crops:
            group = filling[patch.case] = []
            groups.append(group)
        group.append(patch)
    return [tuple(group) for group in groups]


# ---------------------------------------------------------------------------------------------------- nnU-Net


def nnunet(prepared: Prepared, draws: Draws) -> Opened:
    """nnU-Net's storage, read as it reads, by its background workers."""
    return _nnunet(prepared, draws), dict


def _nnunet(prepared: Prepared, draws: Draws) -> Delivery:
    from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter

    workers = NonDetMultiThreadedAugmenter(
        _NnunetBatches(prepared, draws),
        None,
        num_processes=WORKERS,
        num_cached=max(6, WORKERS // 2),
        pin_memory=False,
        wait_time=0.002,
    )
    try:
        for item in workers:
            yield item["keys"], item["data"][:, 0].numpy()
    finally:
        workers._finish()


class _NnunetBatches:
    """Batches of patches, every `WORKERS`-th of them in each worker."""

    def __init__(self, prepared: Prepared, draws: Draws) -> None:
        self._folder = blosc2_folder(prepared, draws.shape)
        self._prepared, self._draws = prepared, draws
        self._step = 0

    def set_thread_id(self, number: int) -> None:
        self._step = number

    def __next__(self) -> dict[str, Any]:
        import blosc2

        draws = self._draws
        first = self._step * draws.batch % len(draws.patches)
        self._step += WORKERS
        patches = draws.patches[first : first + draws.batch]
        data = torch.empty((len(patches), 1, *draws.shape), dtype=torch.float32)
        for row, patch in zip(data, patches, strict=True):
            name = "_".join(self._prepared.cases[patch.case])
            volume = blosc2.open(
                urlpath=f"{self._folder}/{name}.b2nd", mode="r", dparams={"nthreads": 1}, mmap_mode="r"
            )
            box = [slice(a, a + size) for a, size in zip(patch.start, draws.shape, strict=True)]
            row.copy_(torch.from_numpy(volume[(slice(None), *box)]))
        return {"data": data, "keys": patches}


def blosc2_folder(prepared: Prepared, shape: tuple[int, int, int]) -> Path:
    """Where nnU-Net's files for a patch size are."""
    return Path(prepared.folder, f"blosc2-{'x'.join(map(str, shape))}")


def write_blosc2(prepared: Prepared, shape: tuple[int, int, int]) -> None:
    """Write all cases as nnU-Net's preprocessing writes them, an empty label beside each."""
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    folder = blosc2_folder(prepared, shape)
    folder.mkdir(parents=True, exist_ok=True)
    for case in prepared.cases:
        image = np.load(prepared.array(case))
        label = np.zeros(image.shape, dtype=np.int8)
        blocks, chunks = comp_blosc2_params(image.shape, shape, image.itemsize)
        blocks_seg, chunks_seg = comp_blosc2_params(label.shape, shape, label.itemsize)
        nnUNetDatasetBlosc2.save_case(
            image, label, {}, str(folder / "_".join(case)),
            chunks=chunks, blocks=blocks, chunks_seg=chunks_seg, blocks_seg=blocks_seg,
        )  # fmt: skip


def write_persistent(prepared: Prepared) -> None:
    """Fill `PersistentDataset`'s folder, as its first epoch does."""
    from monai.data import PersistentDataset, set_track_meta
    from monai.transforms import Compose, LoadImaged, RandSpatialCropSamplesd

    set_track_meta(False)
    load = LoadImaged("image", reader="NumpyReader", image_only=True)
    crop = RandSpatialCropSamplesd("image", (1, 1, 1), num_samples=1)
    files = [{"image": str(prepared.array(case))} for case in prepared.cases]
    dataset = PersistentDataset(files, Compose([load, crop]), cache_dir=Path(prepared.folder, "persistent"))
    for number in range(len(dataset)):
        dataset[number]


# ------------------------------------------------------------------------------------------------ zarr-python


def zarr_python(prepared: Prepared, draws: Draws) -> Opened:
    """zarr-python with its own codec pipeline on the store, arrays opened once, a thread reading ahead."""
    return _zarr_python(prepared, draws), dict


def _zarr_python(prepared: Prepared, draws: Draws) -> Delivery:
    import zarr
    from zarr.storage import FsspecStore, LocalStore

    arrays: list[Any] = []
    for dataset, case in prepared.cases:
        url = f"{prepared.store}/{dataset}/{case}.zarr"
        storage = (
            FsspecStore.from_url(url, read_only=True) if "://" in url else LocalStore(url, read_only=True)
        )
        arrays.append(zarr.open_array(storage, path="0", mode="r", zarr_format=3))
    factors = [np.float32(array.attrs["scale_factor"]) for array in arrays]
    steps = len(draws.patches) // draws.batch

    def read(step: int) -> Batch:
        patches = draws.patches[step % steps * draws.batch :][: draws.batch]
        out = np.empty((len(patches), *draws.shape), dtype=np.float32)
        for row, patch in zip(out, patches, strict=True):
            box = tuple(slice(a, a + size) for a, size in zip(patch.start, draws.shape, strict=True))
            np.multiply(arrays[patch.case][(0, *box)], factors[patch.case], out=row)
        return patches, out

    for batch, _ in read_ahead(read, itertools.count(), depth=2):
        yield batch
