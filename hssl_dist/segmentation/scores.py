"""All scores of one case: overlap, distances between surfaces in millimetres, and volume.

Surface distances are MONAI's. What it leaves to its caller is settled here: structures that are missing on
one side, and cropping, so that a small structure in a large volume is fast.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt8
from scipy import ndimage

from hssl_dist.records import Triple

Outcome = Literal["found", "missed", "spurious", "absent"]
Box = tuple[slice, slice, slice]

_PERCENTILE = 95.0


@dataclass(frozen=True, slots=True)
class Metric:
    """A score: its key, what a page calls it, its unit, and which values are good."""

    key: str
    title: str
    unit: str
    better: Literal["higher", "lower", "zero"]


METRICS = (
    Metric("dice", "Dice", "", "higher"),
    Metric("nsd", "Surface Dice", "", "higher"),
    Metric("hd95_mm", "HD95", "mm", "lower"),
    Metric("volume_error_ml", "Volume error", "mL", "zero"),
    Metric("volume_error_relative", "Relative volume error", "", "zero"),
)


@dataclass(frozen=True, slots=True)
class ClassScore:
    """Scores of one class in one case; NaN where there is none, which counts in no mean.

    `outcome` is `found` (in label and prediction), `missed` (in the label alone), `spurious` (in the
    prediction alone) or `absent` (in neither).
    """

    outcome: Outcome
    label_ml: float
    prediction_ml: float
    dice: float
    nsd: float
    hd95_mm: float
    volume_error_ml: float
    volume_error_relative: float

    def values(self) -> dict[str, float]:
        """The scores by the keys of `METRICS`."""
        known = asdict(self)
        return {metric.key: known[metric.key] for metric in METRICS}


def score_case(
    prediction: UInt8[np.ndarray, "z y x"],
    label: UInt8[np.ndarray, "z y x"],
    spacing_mm: Triple,
    tolerance_mm: Mapping[int, float],
) -> dict[int, ClassScore]:
    """The scores of each class that `tolerance_mm` names, by its label value.

    Dice is `2 |P and T| / (|P| + |T|)`. HD95 is the larger of the two directed 95th percentiles of distances
    between surface voxels. Surface Dice is the share of both surfaces' area that lies within the tolerance of
    the other (Nikolov et al., arXiv 1809.04430). Volume errors are prediction minus label, absolute and
    relative to the label. A class in only one of both has Dice and surface Dice 0 and, for HD95, the
    volume's diagonal: no distance in it is larger, so missing a structure never makes a mean better. A class
    in neither has no score.
    """
    if prediction.shape != label.shape:
        raise ValueError(f"prediction has shape {prediction.shape}, label {label.shape}; they must be equal")
    diagonal_mm = math.dist((0.0, 0.0, 0.0), np.multiply(label.shape, spacing_mm))
    voxel_ml = math.prod(spacing_mm) / 1000.0
    scores = {}
    for value, box in _boxes(prediction, label, tolerance_mm):
        predicted, true = prediction[box] == value, label[box] == value
        scores[value] = _score(predicted, true, spacing_mm, voxel_ml, diagonal_mm, tolerance_mm[value])
    return scores


def _boxes(
    prediction: UInt8[np.ndarray, "z y x"], label: UInt8[np.ndarray, "z y x"], values: Iterable[int]
) -> Iterator[tuple[int, Box]]:
    """The smallest box around each class in both, empty for a class in neither; one pass over the voxels."""
    wanted = tuple(values)
    highest = max(wanted, default=0)
    found = [ndimage.find_objects(array, highest) for array in (prediction, label)]
    for value in wanted:
        yield value, _union([box for boxes in found if (box := boxes[value - 1]) is not None])


def _union(boxes: list[tuple[slice, ...]]) -> Box:
    if not boxes:
        return slice(0, 0), slice(0, 0), slice(0, 0)
    z, y, x = (
        slice(min(part.start for part in parts), max(part.stop for part in parts))
        for parts in zip(*boxes, strict=True)
    )
    return z, y, x


def _score(
    predicted: Bool[np.ndarray, "z y x"],
    true: Bool[np.ndarray, "z y x"],
    spacing_mm: Triple,
    voxel_ml: float,
    diagonal_mm: float,
    tolerance_mm: float,
) -> ClassScore:
    in_prediction, in_label = int(predicted.sum()), int(true.sum())
    outcome = _OUTCOMES[in_label > 0, in_prediction > 0]
    dice = nsd = hd95_mm = error_ml = relative = math.nan
    if outcome == "found":
        dice = 2.0 * int((predicted & true).sum()) / (in_prediction + in_label)
        nsd, hd95_mm = _surface_scores(predicted, true, spacing_mm, tolerance_mm)
    elif outcome != "absent":
        dice, nsd, hd95_mm = 0.0, 0.0, diagonal_mm
    if outcome != "absent":
        error_ml = (in_prediction - in_label) * voxel_ml
    if in_label:
        relative = (in_prediction - in_label) / in_label
    return ClassScore(
        outcome, in_label * voxel_ml, in_prediction * voxel_ml, dice, nsd, hd95_mm, error_ml, relative
    )


_OUTCOMES: dict[tuple[bool, bool], Outcome] = {
    (True, True): "found",
    (True, False): "missed",
    (False, True): "spurious",
    (False, False): "absent",
}
"""By whether the class is in the label and in the prediction."""


def _surface_scores(
    predicted: Bool[np.ndarray, "z y x"],
    true: Bool[np.ndarray, "z y x"],
    spacing_mm: Triple,
    tolerance_mm: float,
) -> tuple[float, float]:
    """Surface Dice and HD95 of two masks that are not empty.

    MONAI's HD95 is NaN if one mask is empty (its issue 9095), so it is never asked then. Its surface Dice
    weighs surface elements by their area only with `use_subvoxels`; by counting voxels, thick slices would
    make the faces across them too small. It crops by itself too, but only after a pass over the volume for
    each class; around the crop it adds a voxel of background, so faces on the volume's border count.
    """
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice

    prediction, label = (
        torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (predicted, true)
    )
    spacing = [float(edge) for edge in spacing_mm]  # MONAI refuses a mixture of int and float
    with _quiet_monai():
        hd95_mm = compute_hausdorff_distance(
            prediction, label, include_background=True, percentile=_PERCENTILE, spacing=spacing
        )
        nsd = compute_surface_dice(
            prediction, label, [tolerance_mm], include_background=True, spacing=spacing, use_subvoxels=True
        )
    return float(nsd), float(hd95_mm)


@contextmanager
def _quiet_monai() -> Iterator[None]:
    """MONAI 1.6 warns of an argument that it passes itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        yield
