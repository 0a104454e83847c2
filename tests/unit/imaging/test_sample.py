"""A sample's percentiles are numpy's, to the last bit, whatever its numbers are held in."""

from __future__ import annotations

import numpy as np
import pytest

from hssl_dist.imaging.sample import Sample
from hssl_dist.records import Scaling

PERCENTS = (0.0, 0.5, 2.0, 37.0, 98.0, 99.5, 100.0)


def numbers_of(dtype, size, seed):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return (rng.normal(size=size) * 300).astype(dtype)
    info = np.iinfo(dtype)
    return rng.normal(0.3 * info.max, 0.1 * info.max, size).clip(info.min, info.max).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("scaling", [Scaling(), Scaling(0.37, -20.0), Scaling(-2.0, 5.0)])
def test_percentiles_are_numpy_s(dtype, scaling):
    for seed, size in enumerate((1, 2, 3, 50, 201, 999, 20_000)):
        numbers = numbers_of(dtype, size, seed)
        sample = Sample(numbers, scaling)
        values = scaling.values(numbers)
        assert sample.percentiles(PERCENTS) == np.percentile(values, PERCENTS).tolist()
        skip = size // 3
        wide = np.sort(values)[skip:].astype(np.float64)
        assert sample.percentiles(PERCENTS, skip, np.float64) == np.percentile(wide, PERCENTS).tolist()


def test_a_sample_of_one_value():
    assert Sample(np.full(7, -3, np.int16), Scaling(2.0)).percentiles((2.0, 98.0)) == [-6.0, -6.0]
