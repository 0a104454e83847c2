"""What is recorded of a volume: its intensities, for the recipe, and where its structures are, to sample."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial

import numpy as np
from jaxtyping import Bool, Float32, Int64, Shaped, UInt8

from hssl_dist.imaging.recipe import CaseSurvey, ChannelSurvey
from hssl_dist.imaging.sample import SAMPLE_VOXELS
from hssl_dist.imaging.slabs import slabs
from hssl_dist.imaging.tissue import above, find_tissue, foreground_kind
from hssl_dist.records import TISSUE, Scaling, Shape, Volume

QUANTILES = 256
SAMPLES_PER_CLASS = 32
_FEW_CLASSES = 8
"""So many are counted faster one by one."""


def survey_case(case_id: str, volume: Volume) -> CaseSurvey:
    """Geometry and intensities of a loaded volume: of its annotated voxels, or of its tissue without any."""
    kind = foreground_kind(volume)
    channels = []
    for channel, modality in zip(volume.image, volume.modalities, strict=True):
        if kind == "label" and volume.label is not None:
            count = int(np.count_nonzero(volume.label))
            values = volume.scaling.values(_spaced_inside(channel, volume.label, -(-count // SAMPLE_VOXELS)))
        else:
            tissue = find_tissue(channel, volume.scaling, modality)
            count = int(_counts_above(channel, volume.scaling, tissue.threshold).sum())
            values = tissue.sample.values[tissue.sample.values > tissue.threshold]
            values = values if values.size else tissue.sample.values
        channels.append(_survey_channel(values, count, fingerprint(channel, volume.scaling)))
    return CaseSurvey(
        id=case_id,
        shape=volume.geometry.oriented_shape,
        spacing_mm=volume.geometry.oriented_spacing_mm,
        foreground=kind,
        channels=tuple(channels),
    )


def fingerprint(channel: Shaped[np.ndarray, "z y x"], scaling: Scaling) -> str:
    """Identifies a loaded channel by its shape and intensities: 128 bits of SHA-256, in hex.

    Equal for the same scan in another file, be it compressed, oriented or stored as another type.
    """
    digest = hashlib.sha256(repr(channel.shape).encode())
    for slab in slabs(channel.shape):
        digest.update((scaling.values(channel[slab]) + np.float32(0)).data)  # -0 is 0
    return digest.hexdigest()[:32]


def _spaced_inside(
    channel: Shaped[np.ndarray, "z y x"], label: UInt8[np.ndarray, "z y x"], step: int
) -> Shaped[np.ndarray, " voxels"]:
    """Every `step`-th of the channel's labelled voxels, a few slices at a time."""
    parts, first = [], 0
    for slab in slabs(channel.shape):
        if label[slab].any():
            inside = channel[slab][label[slab] > 0]
            parts.append(inside[first::step])
            first = (first - inside.size) % step
    return np.concatenate(parts)


def foreground_samples(volume: Volume, seed: int) -> tuple[dict[str, tuple[Shape, ...]], dict[str, int]]:
    """`(foreground, voxels)` of a volume on its stored grid, for the case's record.

    `foreground` has up to 32 voxels `(z, y, x)` of every class present, drawn uniformly without repetition
    and sorted, under the class's value as text, and of all tissue under `any`; `voxels` has their numbers.
    The same volume and seed give the same voxels. Memory is that of a few slices.
    """
    foreground: dict[str, tuple[Shape, ...]] = {}
    voxels: dict[str, int] = {}
    if (label := volume.label) is not None:
        for value, counts in _class_counts(label).items():
            foreground[str(value)] = _pick(
                label.shape, counts, partial(_of_class, label, value), (seed, value)
            )
            voxels[str(value)] = int(counts.sum())
    channel = volume.image[0]
    threshold = find_tissue(channel, volume.scaling, volume.modalities[0]).threshold
    counts = _counts_above(channel, volume.scaling, threshold)
    foreground[TISSUE] = _pick(
        channel.shape, counts, lambda slab: above(channel[slab], volume.scaling, threshold), (seed, 0)
    )
    voxels[TISSUE] = int(counts.sum())
    return foreground, voxels


def _counts_above(
    channel: Shaped[np.ndarray, "z y x"], scaling: Scaling, threshold: float
) -> Int64[np.ndarray, " slab"]:
    """Voxels above a threshold in each slab."""
    return np.array(
        [np.count_nonzero(above(channel[slab], scaling, threshold)) for slab in slabs(channel.shape)]
    )


def _class_counts(label: UInt8[np.ndarray, "z y x"]) -> dict[int, Int64[np.ndarray, " slab"]]:
    """Voxels in each slab of every class present, without the background."""
    parts = [label[slab] for slab in slabs(label.shape)]
    table = np.zeros((len(parts), 256), dtype=np.int64)
    for counts, part in zip(table, parts, strict=True):
        highest = int(part.max())
        if highest > _FEW_CLASSES:
            counts[...] = np.bincount(part.reshape(-1), minlength=256)
        else:
            counts[1 : highest + 1] = [np.count_nonzero(part == value) for value in range(1, highest + 1)]
    return {int(value): table[:, value] for value in np.flatnonzero(table.any(axis=0)) if value > 0}


def _of_class(label: UInt8[np.ndarray, "z y x"], value: int, slab: slice) -> Bool[np.ndarray, "planes y x"]:
    mask: Bool[np.ndarray, "planes y x"] = label[slab] == value
    return mask


def _pick(
    shape: Shape,
    counts: Int64[np.ndarray, " slab"],
    mask: Callable[[slice], Bool[np.ndarray, "planes y x"]],
    seed: tuple[int, int],
) -> tuple[Shape, ...]:
    """Up to `SAMPLES_PER_CLASS` voxels of a set with `counts` members per slab; reads only their slabs."""
    ends = np.cumsum(counts)
    total = int(ends[-1])
    ranks = np.random.default_rng(seed).choice(total, min(total, SAMPLES_PER_CLASS), replace=False)
    ranks.sort()
    holders = np.searchsorted(ends, ranks, side="right")
    picked: list[Shape] = []
    for holder, slab in enumerate(slabs(shape)):
        inside = ranks[holders == holder] - (ends[holder] - counts[holder])
        if inside.size:
            flat = np.flatnonzero(mask(slab))[inside] + slab.start * shape[1] * shape[2]
            picked += zip(*(axis.tolist() for axis in np.unravel_index(flat, shape)), strict=True)
    return tuple(picked)


def _survey_channel(values: Float32[np.ndarray, " voxels"], count: int, identity: str) -> ChannelSurvey:
    wide = np.sort(values).astype(np.float64)
    shares = min(QUANTILES, wide.size)
    quantiles = np.quantile(wide, (np.arange(shares) + 0.5) / shares, method="hazen")
    return ChannelSurvey(
        voxels=count,
        minimum=float(wide[0]),
        maximum=float(wide[-1]),
        mean=float(wide.mean()),
        std=float(wide.std()),
        quantiles=tuple(float(value) for value in quantiles),
        fingerprint=identity,
    )
