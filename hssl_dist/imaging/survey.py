"""What is recorded of a volume: its intensities, for the recipe, and where its structures are, to sample."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial

import numpy as np
from jaxtyping import Bool, Float32, Int64, Shaped, UInt8

from hssl_dist.imaging.recipe import CaseSurvey, ChannelSurvey
from hssl_dist.imaging.tissue import (
    SAMPLE_VOXELS,
    above,
    find_tissue,
    foreground_kind,
)
from hssl_dist.records import Scaling, Shape, Volume

QUANTILES = 256
SAMPLES_PER_CLASS = 32
ANY = "any"
"""Key of all tissue, whatever its class."""


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
            masks = (above(plane, volume.scaling, tissue.threshold) for plane in channel)
            count = sum(int(np.count_nonzero(mask)) for mask in masks)
            values = tissue.sample[tissue.sample > tissue.threshold]
            values = values if values.size else tissue.sample
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
    for plane in channel:
        digest.update((scaling.values(plane) + np.float32(0)).tobytes())  # -0 is 0
    return digest.hexdigest()[:32]


def _spaced_inside(
    channel: Shaped[np.ndarray, "z y x"], label: UInt8[np.ndarray, "z y x"], step: int
) -> Shaped[np.ndarray, " voxels"]:
    """Every `step`-th of the channel's labelled voxels, slice by slice."""
    parts, first = [], 0
    for plane, labelled in zip(channel, label, strict=True):
        if labelled.any():
            inside = plane[labelled > 0]
            parts.append(inside[first::step])
            first = (first - inside.size) % step
    return np.concatenate(parts)


def foreground_samples(volume: Volume, seed: int) -> tuple[dict[str, tuple[Shape, ...]], dict[str, int]]:
    """`(foreground, voxels)` of a volume on its stored grid, for the case's record.

    `foreground` has up to 32 voxels `(z, y, x)` of every class present, drawn uniformly without repetition
    and sorted, under the class's value as text, and of all tissue under `any`; `voxels` has their numbers.
    The same volume and seed give the same voxels. Works slice by slice: memory is that of one slice.
    """
    foreground: dict[str, tuple[Shape, ...]] = {}
    voxels: dict[str, int] = {}
    if (label := volume.label) is not None:
        for value, counts in _class_counts(label).items():
            foreground[str(value)] = _pick(counts, partial(_plane_of_class, label, value), (seed, value))
            voxels[str(value)] = int(counts.sum())
    channel = volume.image[0]
    threshold = find_tissue(channel, volume.scaling, volume.modalities[0]).threshold
    counts = np.array([np.count_nonzero(above(plane, volume.scaling, threshold)) for plane in channel])
    foreground[ANY] = _pick(counts, lambda z: above(channel[z], volume.scaling, threshold), (seed, 0))
    voxels[ANY] = int(counts.sum())
    return foreground, voxels


def _class_counts(label: UInt8[np.ndarray, "z y x"]) -> dict[int, Int64[np.ndarray, " z"]]:
    """Voxels per slice of every class present, without the background."""
    table = np.zeros((len(label), 256), dtype=np.int64)
    for counts, plane in zip(table, label, strict=True):
        if plane.any():
            counts[...] = np.bincount(plane.reshape(-1), minlength=256)
    return {int(value): table[:, value] for value in np.flatnonzero(table.any(axis=0)) if value > 0}


def _plane_of_class(label: UInt8[np.ndarray, "z y x"], value: int, z: int) -> Bool[np.ndarray, "y x"]:
    mask: Bool[np.ndarray, "y x"] = label[z] == value
    return mask


def _pick(
    counts: Int64[np.ndarray, " z"], mask: Callable[[int], Bool[np.ndarray, "y x"]], seed: tuple[int, int]
) -> tuple[Shape, ...]:
    """Up to `SAMPLES_PER_CLASS` voxels of a set with `counts` members per slice; reads only their slices."""
    ends = np.cumsum(counts)
    total = int(ends[-1])
    ranks = np.random.default_rng(seed).choice(total, min(total, SAMPLES_PER_CLASS), replace=False)
    picked: list[Shape] = []
    slices = np.searchsorted(ends, np.sort(ranks), side="right")
    for z in np.unique(slices):
        inside = np.sort(ranks)[slices == z] - (ends[z] - counts[z])
        plane = mask(int(z))
        flat = np.flatnonzero(plane)[inside]
        picked += [
            (int(z), int(y), int(x)) for y, x in zip(*np.unravel_index(flat, plane.shape), strict=True)
        ]
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
