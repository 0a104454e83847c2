"""Volumes, storages and regions as hypothesis makes them up; voxels come from a seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from hssl_dist.config.preprocess import StorageConfig
from hssl_dist.records import Region, Volume
from tests.unit.store.conftest import make_volume

SIDES = st.integers(1, 14) | st.integers(15, 40)
SHAPES = st.tuples(SIDES, st.integers(1, 14), st.integers(1, 14)).flatmap(st.permutations).map(tuple)
SPACINGS = st.tuples(*[st.floats(1e-3, 1e3)] * 3)


@st.composite
def volumes(draw: st.DrawFn, largest: float = 1e30) -> Volume:
    """One or two channels of normal numbers of any magnitude up to `largest`, some of them zero or alike."""
    volume = make_volume(draw(SHAPES), draw(st.integers(1, 2)), draw(st.booleans()), draw(st.integers(0, 99)))
    magnitude = draw(st.sampled_from([0.0, 1e-6, 1.0, 5.0, 1e3, largest / 8]))
    image = (volume.image * np.float32(magnitude)).astype(np.float32)
    kept = draw(st.sampled_from(["all", "some", "one value"]))
    if kept == "some":
        image[np.abs(volume.image) < 1.0] = 0.0
    elif kept == "one value":
        image[...] = np.float32(magnitude)
    label = volume.label
    if label is not None:
        label = label * np.uint8(draw(st.sampled_from([0, 1, 100, 127])))
    return replace(volume, image=image, label=label, spacing_mm=draw(SPACINGS))


@st.composite
def storages(draw: st.DrawFn) -> StorageConfig:
    """Chunks of a few voxels, shards of a few chunks: up to some dozens of shards a volume."""
    chunk = draw(st.tuples(*[st.integers(1, 9)] * 3))
    shard = tuple(side * (-(-8 // side) + draw(st.integers(0, 2))) for side in chunk)
    return StorageConfig(chunk=chunk, shard=shard, dtype=draw(st.sampled_from(["auto", "int16", "float16"])))


@st.composite
def regions(draw: st.DrawFn, channels: int) -> Region:
    """A box that lies inside of a volume, across its border, beside it, or far away."""
    near = st.integers(-12, 40)
    start = draw(st.tuples(near, near, near) | st.tuples(*[st.sampled_from([-(2**40), -1, 2**40])] * 3))
    shape = draw(st.tuples(*[st.integers(1, 12)] * 3))
    return Region("toy", "case", draw(st.integers(0, channels - 1)), start, shape)
