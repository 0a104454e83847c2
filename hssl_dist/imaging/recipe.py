"""The recipe of a dataset: everything that decides how its source voxels become stored voxels.

A recipe follows from the config and from a survey of the dataset's readable cases. Equal recipes and equal
source files give byte-identical stored volumes, so `Recipe.hash` together with the sources' hashes tells
whether a stored case is still the right one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
from jaxtyping import Float64

from hssl_dist.config.preprocess import DatasetConfig, StorageConfig
from hssl_dist.errors import MissingError
from hssl_dist.records import Record, Shape, Triple, content_hash

Rule = Literal["ct", "mr"]

RECIPE_VERSION = 2
"""Raised whenever the same recipe would give other voxels; part of the hash."""

ANISOTROPY = 3.0
"""Above this ratio of spacings the coarse axis is a stack of thick slices, not a sampled axis."""

_COARSE_PERCENTILE = 10.0


class ChannelRecipe(Record):
    """How one channel is normalised: `stored = (clip(source) - offset) / scale`.

    `ct` has one set of numbers for the dataset, because its unit is absolute (HU). `mr` has None for all of
    them: they are found per volume.
    """

    rule: Rule
    clip_low: float | None = None
    clip_high: float | None = None
    offset: float | None = None
    scale: float | None = None


class Recipe(Record):
    """How every case of a dataset is prepared and stored."""

    version: int = RECIPE_VERSION
    spacing_mm: Triple
    channels: tuple[ChannelRecipe, ...]
    classes: dict[int, str]
    storage: dict[str, Any]

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the recipe."""
        return content_hash(self.model_dump(mode="json"))


class ChannelSurvey(Record):
    """One channel's source intensities over the foreground, from at most a million evenly spaced voxels.

    `voxels` is the size of the foreground; `quantiles` are the middles of its at most 256 equal shares.
    `fingerprint` identifies all of the channel's voxels, whatever file they came in.
    """

    voxels: int
    minimum: float
    maximum: float
    mean: float
    std: float
    quantiles: tuple[float, ...]
    fingerprint: str


class CaseSurvey(Record):
    """What the recipe has to know of one case. `shape` and `spacing_mm` are oriented (RAS), `z y x`.

    `foreground` says what the channels' intensities are of: the annotated structures, or all tissue of a
    case without any.
    """

    id: str
    shape: Shape
    spacing_mm: Triple
    foreground: Literal["label", "tissue"]
    channels: tuple[ChannelSurvey, ...]

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """Of each channel."""
        return tuple(channel.fingerprint for channel in self.channels)


def resolve_recipe(
    dataset: DatasetConfig,
    classes: dict[int, str],
    modalities: tuple[str, ...],
    surveys: Sequence[CaseSurvey],
    storage: StorageConfig,
) -> Recipe:
    """The recipe of a dataset, from its config and the surveys of its readable cases (in any order).

    Raises MissingError if there is no survey.
    """
    if not surveys:
        raise MissingError(
            f"dataset {dataset.name!r} has no readable case; see the quarantine for the reasons"
        )
    surveys = sorted(surveys, key=lambda survey: survey.id)
    spacing_mm = dataset.spacing_mm or _target_spacing([survey.spacing_mm for survey in surveys])
    channels = tuple(
        _ct_channel(surveys, index) if modality == "ct" else ChannelRecipe(rule="mr")
        for index, modality in enumerate(modalities)
    )
    return Recipe(
        spacing_mm=spacing_mm, channels=channels, classes=classes, storage=storage.model_dump(mode="json")
    )


def _target_spacing(spacings_mm: Sequence[Triple]) -> Triple:
    """The median of each axis; for the slice axis of anisotropic data, its 10th percentile.

    With the median, half of a thick-slice dataset would lose measured slices: for the coarse axis that is a
    loss no in-plane detail makes up for, whereas interpolated slices only cost space. The percentile is
    robust to a few thin-slice cases. It never gets finer than the coarser of the other two axes, beyond
    which there is nothing to gain. (The same rule as nnU-Net's, after Isensee et al. 2021.)
    """
    table = np.asarray(spacings_mm, dtype=np.float64)
    target = np.median(table, axis=0)
    coarse = int(np.argmax(target))
    if target[coarse] > ANISOTROPY * target.min():
        others = np.delete(target, coarse)
        target[coarse] = max(float(np.percentile(table[:, coarse], _COARSE_PERCENTILE)), float(others.max()))
    return cast("Triple", tuple(round(float(value), 6) for value in target))


def _ct_channel(surveys: Sequence[CaseSurvey], index: int) -> ChannelRecipe:
    """Clip to the foreground's 0.5 and 99.5 percentiles, then mean and deviation of what is left.

    The cases' quantiles are pooled with equal weight per case, so one huge structure does not decide for all.
    Once any case is annotated, only annotated cases count: tissue at large is another distribution.
    """
    annotated = [survey for survey in surveys if survey.foreground == "label"]
    pool = [survey.channels[index].quantiles for survey in annotated or surveys]
    values = np.concatenate([np.asarray(quantiles, dtype=np.float64) for quantiles in pool])
    weights = np.concatenate([np.full(len(quantiles), 1.0 / len(quantiles)) for quantiles in pool])
    low, high = _weighted_percentiles(values, weights, (0.5, 99.5))
    clipped = np.clip(values, low, high)
    mean = float(np.average(clipped, weights=weights))
    std = float(np.sqrt(np.average((clipped - mean) ** 2, weights=weights)))
    return ChannelRecipe(rule="ct", clip_low=low, clip_high=high, offset=mean, scale=std if std > 0 else 1.0)


def _weighted_percentiles(
    values: Float64[np.ndarray, " value"],
    weights: Float64[np.ndarray, " value"],
    percentiles: Sequence[float],
) -> list[float]:
    """Percentiles of weighted values, linear between the middles of their steps."""
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order])
    middles = (cumulative - 0.5 * weights[order]) / cumulative[-1]
    return [float(value) for value in np.interp(np.asarray(percentiles) / 100.0, middles, values[order])]
