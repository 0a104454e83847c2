"""What each project does with a case: ours, MONAI's transforms, nnU-Net's resampling and its storage.

Ours reads the case, finds statistics and the crop, normalises, resamples, counts and samples the foreground,
hashes and writes. `benchmarks.preprocess_monai` says what MONAI does. nnU-Net's functions are the installed
distribution's own, with the settings its preprocessor passes.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks import preprocess_monai
from hssl_dist.config.preprocess import StorageConfig
from hssl_dist.imaging import Recipe, load_case, prepare
from hssl_dist.imaging.resampling import Kernel, resample_image, resample_label
from hssl_dist.jobs.preprocess_cases import Assignment, describe
from hssl_dist.records import Case, Geometry, Intensity, Volume
from hssl_dist.store.encoding import encode_case
from hssl_dist.store.quantising import stored_numbers

LIMIT = 1 << 30
LINEAR: tuple[Kernel, Kernel, Kernel] = ("share", "share", "share")
"""Our kernels when they are to be MONAI's: linear, and not widened where the grid gets coarser."""

_SMALL_VOXELS = 1 << 23

Array = np.ndarray[Any, np.dtype[Any]]
Seconds = dict[Literal["prepare", "write"], float]


@dataclass(frozen=True)
class Group:
    """Cases of one dataset, one recipe, and what `plan` found out about each."""

    name: str
    cases: tuple[Case, ...]
    recipe: Recipe
    kernels: tuple[Kernel, Kernel, Kernel] | None
    plans: tuple[tuple[Geometry, Intensity], ...] = ()


def plan(group: Group) -> Callable[[], tuple[tuple[Geometry, Intensity], ...]]:
    """Geometry and intensities of each case, which MONAI's spared chain is given."""

    def work() -> tuple[tuple[Geometry, Intensity], ...]:
        prepared = [_prepare(group, case) for case in group.cases]
        return tuple((volume.geometry, intensities[0]) for volume, intensities in prepared)

    return work


def _warm(group: Group, work: Callable[[], Seconds]) -> Callable[[], Seconds]:
    """The work, done once already if it is small: then what a process does but once would weigh too much."""
    if sum(math.prod(geometry.oriented_shape) for geometry, _ in group.plans) < _SMALL_VOXELS:
        work()
    return work


def _prepare(group: Group, case: Case) -> tuple[Volume, tuple[Intensity, ...]]:
    volume = load_case(case, group.recipe.classes, LIMIT)
    return prepare(volume, group.recipe, partial(stored_numbers, "int16"), group.kernels)


def ours(group: Group) -> Callable[[], Seconds]:
    """What a worker does to store a case."""
    from hssl_dist.store.writer import write_case

    def work() -> Seconds:
        seconds: Seconds = {"prepare": 0.0, "write": 0.0}
        with tempfile.TemporaryDirectory() as root:
            for case in group.cases:
                start_s = time.process_time()
                volume, intensities = _prepare(group, case)
                record = describe(Assignment(case, "t", "g", (), (), "0" * 64), volume, intensities)
                middle_s = time.process_time()
                write_case(root, record, volume, group.recipe.classes, StorageConfig())
                seconds["prepare"] += middle_s - start_s
                seconds["write"] += time.process_time() - middle_s
        return seconds

    return _warm(group, work)


# -------------------------------------------------------------------------------------------------- MONAI

Chain = Literal["equivalent", "spared"]
CHAINS: tuple[Chain, ...] = ("equivalent", "spared")
"""MONAI's chain that finds crop and statistics as ours does, and the one that is given them."""


def monai(group: Group, which: Chain) -> Callable[[], Seconds]:
    """MONAI's chain for each case, then nnU-Net's way of writing."""
    chains = _chains(group, which)
    _blosc2()

    def work() -> Seconds:
        seconds: Seconds = {"prepare": 0.0, "write": 0.0}
        with tempfile.TemporaryDirectory() as folder:
            for case, chain in zip(group.cases, chains, strict=True):
                start_s = time.process_time()
                image, label = chain(case)
                middle_s = time.process_time()
                write_blosc2(image, label, Path(folder, case.id))
                seconds["prepare"] += middle_s - start_s
                seconds["write"] += time.process_time() - middle_s
        return seconds

    return _warm(group, work)


def _chains(group: Group, which: Chain) -> list[Callable[[Case], preprocess_monai.Prepared]]:
    """MONAI's chain of each case."""
    if which == "spared":
        return [preprocess_monai.spared(*plan) for plan in group.plans]
    return [preprocess_monai.equivalent(group.recipe)] * len(group.cases)


def difference(group: Group) -> Callable[[], dict[Chain, dict[str, float]]]:
    """How far our stored values and labels are from those of each of MONAI's chains."""

    def work() -> dict[Chain, dict[str, float]]:
        return {which: _difference(group, which) for which in CHAINS}

    return work


def _difference(group: Group, which: Chain) -> dict[str, float]:
    """The largest error of a value, and the share of labelled voxels whose labels differ."""
    largest = other = labelled = 0.0
    for case, chain in zip(group.cases, _chains(group, which), strict=True):
        volume, _ = _prepare(group, case)
        image, label = chain(case)
        for z, plane in enumerate(volume.image[0]):
            apart = volume.scaling.values(plane) - image[0, :, :, z].T
            largest = max(largest, float(np.abs(apart).max()))
        if volume.label is not None and label is not None:
            other += np.count_nonzero(volume.label != label[0].T)
            labelled += np.count_nonzero((volume.label > 0) | (label[0].T > 0))
    return {"max_error_std": largest, "other_label_share": other / labelled if labelled else 0.0}


# ------------------------------------------------------------------------------------------------ nnU-Net


def _blosc2() -> Any:
    from nnunetv2.training.dataloading import nnunet_dataset

    return nnunet_dataset


def write_blosc2(image: Array, label: Array | None, path: Path) -> int:
    """A case as nnU-Net 2.8 stores it for patches of 128^3: float32, int8, LZ4HC 5; the image's bytes."""
    dataset = _blosc2()
    image = np.ascontiguousarray(image, dtype=np.float32)
    seg = np.zeros(image.shape, np.int8) if label is None else np.ascontiguousarray(label, dtype=np.int8)
    blocks, chunks = dataset.comp_blosc2_params(image.shape, (128, 128, 128), image.itemsize)
    blocks_seg, chunks_seg = dataset.comp_blosc2_params(seg.shape, (128, 128, 128), seg.itemsize)
    dataset.nnUNetDatasetBlosc2.save_case(
        image, seg, {}, str(path), chunks=chunks, blocks=blocks, chunks_seg=chunks_seg, blocks_seg=blocks_seg
    )
    return path.with_name(f"{path.name}.b2nd").stat().st_size


def resampling(
    group: Group, who: Literal["ours", "nnU-Net"]
) -> Callable[[], tuple[list[Array], list[Array]]]:
    """Resampling alone, of normalised crops in memory: images, and labels where there are any."""
    crops = [_normalised_crop(group, case, plan) for case, plan in zip(group.cases, group.plans, strict=True)]
    if who == "nnU-Net":
        from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    def work() -> tuple[list[Array], list[Array]]:
        images, labels = [], []
        for (image, label), (geometry, _) in zip(crops, group.plans, strict=True):
            old_mm, new_mm, shape = geometry.oriented_spacing_mm, geometry.spacing_mm, geometry.shape
            if who == "ours":
                slabs = resample_image(
                    lambda a, b, image=image: image[a:b], image.shape, old_mm, shape, new_mm
                )
                images.append(np.concatenate([slab.clip(image.min(), image.max()) for slab in slabs]))
                labels += [] if label is None else [resample_label(label, old_mm, shape, new_mm)]
                continue
            settings = {
                "current_spacing": old_mm,
                "new_spacing": new_mm,
                "order_z": 0,
                "force_separate_z": None,
            }
            images.append(
                resample_data_or_seg_to_shape(image[None], shape, is_seg=False, order=3, **settings)[0]
            )
            if label is not None:
                seg = resample_data_or_seg_to_shape(label[None], shape, is_seg=True, order=1, **settings)[0]
                labels.append(seg.astype(np.uint8))
        return images, labels

    return work


def _normalised_crop(
    group: Group, case: Case, plan: tuple[Geometry, Intensity]
) -> tuple[Array, Array | None]:
    geometry, intensity = plan
    volume = load_case(case, group.recipe.classes, LIMIT)
    box = tuple(slice(a, b) for a, b in zip(geometry.crop_start, geometry.crop_stop, strict=True))
    values = volume.scaling.values(volume.image[0][box]).clip(intensity.clip_low, intensity.clip_high)
    label = None if volume.label is None else np.ascontiguousarray(volume.label[box])
    return ((values - intensity.offset) / intensity.scale).astype(np.float32), label


# ---------------------------------------------------------------------------------------------------- size


def sizes(group: Group) -> Callable[[], dict[str, float]]:
    """Bytes of the same prepared images, stored by us and by nnU-Net, and our errors."""

    def work() -> dict[str, float]:
        ours_bytes = theirs_bytes = voxels = 0
        largest = squares = 0.0
        with tempfile.TemporaryDirectory() as folder:
            for case in group.cases:
                volume = load_case(case, group.recipe.classes, LIMIT)
                exact, _ = prepare(volume, group.recipe)
                stored, _ = prepare(volume, group.recipe, partial(stored_numbers, "int16"))
                objects = encode_case(case.id, stored, group.recipe.classes, StorageConfig())
                ours_bytes += sum(len(data) for path, data in objects.items() if path.startswith("0/"))
                theirs_bytes += write_blosc2(exact.image, None, Path(folder, case.id))
                for plane, numbers in zip(exact.image[0], stored.image[0], strict=True):
                    apart = stored.scaling.values(numbers) - plane
                    largest = max(largest, float(np.abs(apart).max()))
                    squares += float(np.square(apart, dtype=np.float64).sum())
                voxels += exact.image[0].size
        return {
            "ours_bytes": ours_bytes, "nnunet_bytes": theirs_bytes, "ratio": ours_bytes / theirs_bytes,
            "max_error_std": largest, "rms_error_std": (squares / voxels) ** 0.5,
        }  # fmt: skip

    return work
