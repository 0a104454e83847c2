"""MONAI's transforms as chains that do to a case what ours does; nnU-Net's way of writing follows on them.

`equivalent` finds for itself all that ours finds: the threshold of tissue and the statistics, from the same
voxels as ours; the box, by `CropForeground`; the grid. Labels are resampled class by class and the largest
share wins, as with ours, and the voxels to sample patches around are found by `ClassesToIndices`. `spared` is
given crop, statistics and grid by a run of ours, takes the nearest label, and looks for nothing. Left out of
both, though ours does them: checks of files and labels, the whole range of intensities, tissue to sample
patches around, hashes of what is written. Both resample in float32, which is faster than MONAI's own default
of float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from hssl_dist.imaging import ChannelRecipe, Recipe
from hssl_dist.imaging.preparing import MR_CLIP_STD
from hssl_dist.imaging.resampling import resampled_grid
from hssl_dist.imaging.sample import sample_step
from hssl_dist.imaging.survey import SAMPLES_PER_CLASS
from hssl_dist.imaging.tissue import AIR_HU
from hssl_dist.records import Case, Geometry, Intensity, Shape, Triple

Array = np.ndarray[Any, np.dtype[Any]]
Image = Any
"""MONAI's MetaTensor, `c x y z`."""

Prepared = tuple[Array, Array | None]
"""Image and label, `c x y z`."""


class _Window(NamedTuple):
    """How intensities are normalised: `(clip(source) - offset) / scale`."""

    low: float
    high: float
    offset: float
    scale: float


def spared(geometry: Geometry, intensity: Intensity) -> Callable[[Case], Prepared]:
    """The chain that is given what is to be found."""
    low, high = intensity.clip_low or 0.0, intensity.clip_high or 0.0
    window = _Window(low, high, intensity.offset, intensity.scale)
    start, stop = geometry.crop_start[::-1], geometry.crop_stop[::-1]
    resampled = _resampler(
        (stop[2] - start[2], stop[1] - start[1], stop[0] - start[0]),
        geometry.oriented_spacing_mm, geometry.shape, geometry.spacing_mm,
    )  # fmt: skip

    def chain(case: Case) -> Prepared:
        image, label = _load(case)
        image = resampled(_normalised(_cropped(image, start, stop), window), "bilinear")
        if label is None:
            return image.numpy(), None
        label = resampled(_cropped(label, start, stop), "nearest")
        return image.numpy(), label.numpy().astype(np.uint8)

    return chain


def equivalent(recipe: Recipe) -> Callable[[Case], Prepared]:
    """The chain that finds everything itself."""
    from monai.transforms import AsDiscrete, ClassesToIndices

    classes = max(recipe.classes) + 1
    one_hot = AsDiscrete(to_onehot=classes)
    indices = ClassesToIndices(classes, max_samples_per_class=SAMPLES_PER_CLASS)

    def chain(case: Case) -> Prepared:
        image, label = _load(case)
        sample = _sample(image)
        threshold = _threshold(sample, case.modalities[0])
        start, stop = _foreground(image, label, threshold)
        window = _window(sample[sample > threshold].astype(np.float64), recipe.channels[0])
        x, y, z = (int(side) for side in np.subtract(stop, start))
        spacing_mm = tuple(round(float(edge), 6) for edge in image.pixdim.numpy()[::-1])
        shape, target_mm = resampled_grid((z, y, x), spacing_mm, recipe.spacing_mm)
        resampled = _resampler((z, y, x), spacing_mm, shape, target_mm)
        image = resampled(_normalised(_cropped(image, start, stop), window), "bilinear")
        if label is None:
            return image.numpy(), None
        label = _cropped(label, start, stop)
        if (shape, target_mm) != ((z, y, x), spacing_mm):
            label = resampled(one_hot(label), "bilinear").argmax(dim=0, keepdim=True)
        indices(label)
        return image.numpy(), label.numpy().astype(np.uint8)

    return chain


def _load(case: Case) -> tuple[Image, Image | None]:
    """Image and label, turned to RAS."""
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd

    keys = ["image"] if case.label is None else ["image", "label"]
    data = Compose(
        [
            LoadImaged(keys, image_only=True),
            EnsureChannelFirstd(keys),
            Orientationd(keys, axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
        ]
    )({"image": case.images[0], "label": case.label})
    return data["image"], data["label"] if len(keys) > 1 else None


def _sample(image: Image) -> Array:
    """The intensities that our statistics are made of."""
    shape: Shape = tuple(image.shape[:0:-1])
    z, y, x = np.unravel_index(np.arange(0, int(np.prod(shape)), sample_step(shape)), shape)
    sample: Array = image.array[0][x, y, z]
    return sample


def _threshold(sample: Array, modality: str) -> float:
    floor = AIR_HU if modality == "ct" else -np.inf
    low, high = (max(float(value), floor) for value in np.percentile(sample, (2.0, 98.0)))
    return low + 0.1 * (high - low)


def _foreground(image: Image, label: Image | None, threshold: float) -> tuple[Any, Any]:
    """`(start, stop)`, `x y z`, of the box around tissue and label."""
    from monai.transforms import CropForeground

    def select(intensities: Image) -> Image:
        bright = intensities > threshold
        return bright if label is None else bright | (label > 0)

    return CropForeground(select).compute_bounding_box(image)


def _window(tissue: Array, rule: ChannelRecipe) -> _Window:
    """The recipe's for CT; for MR from the tissue's mean and deviation between its percentiles."""
    low, high = np.percentile(tissue, (0.5, 99.5))
    clipped = tissue.clip(low, high)
    mean, std = float(clipped.mean()), float(clipped.std())
    if rule.rule == "ct":
        return _Window(rule.clip_low or 0.0, rule.clip_high or 0.0, rule.offset or 0.0, rule.scale or 1.0)
    return _Window(mean - MR_CLIP_STD * std, mean + MR_CLIP_STD * std, mean, std)


def _cropped(image: Image, start: Any, stop: Any) -> Image:
    from monai.transforms import SpatialCrop

    return SpatialCrop(roi_start=start, roi_end=stop)(image)


def _normalised(image: Image, window: _Window) -> Image:
    from monai.transforms import ScaleIntensityRange

    low, high, offset, scale = window
    return ScaleIntensityRange(low, high, (low - offset) / scale, (high - offset) / scale, clip=True)(image)


def _resampler(
    size: Shape, spacing_mm: Triple, shape: Shape, target_mm: Triple
) -> Callable[[Image, str], Image]:
    """A crop `z y x` on another grid, as `(image, mode)`; both grids share their centre."""
    from monai.transforms import SpatialResample

    if (size, spacing_mm) == (shape, target_mm):
        return lambda image, mode: image  # noqa: ARG005
    ratio = np.array(target_mm) / np.array(spacing_mm)
    grid = np.eye(4)  # from a voxel of the new grid to one of the old, x y z
    grid[:3, :3] = np.diag(ratio[::-1])
    grid[:3, 3] = ((np.array(size) - 1) / 2 - ratio * (np.array(shape) - 1) / 2)[::-1]
    settings = {"padding_mode": "border", "align_corners": True, "dtype": np.float32}
    return lambda image, mode: SpatialResample(mode=mode, **settings)(image, image.affine @ grid, shape[::-1])
